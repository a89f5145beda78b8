"""Near-duplicates across a set: hashes of pictures (ImageHash), and loudness in bands over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PICTURES = 5
SIDE = 8  # of a hash: 64 bits
PRINT_RATE_HZ = 20
BANDS = ((80, 400), (400, 1200), (1200, 3000), (3000, 7500))  # Hz
MAX_LAG_S = 0.5
MIN_PRINT_S = 0.8
ROWS = 1024  # compared at once


def picture_bits(frames: np.ndarray) -> list[str]:
    """Difference hashes of five pictures and of their mirror images, as hexadecimal texts."""
    try:
        from imagehash import dhash
    except ImportError as error:
        raise ValueError(f"near-duplicates need ImageHash ({error}); pip install 'nava[prepare]'") from None
    from PIL import Image

    places = np.linspace(0, len(frames) - 1, PICTURES + 2).round().astype(int)[1:-1]
    pictures = [frames[place] for place in places]
    return [
        "".join(str(dhash(Image.fromarray(np.ascontiguousarray(one)), SIDE)) for one in some)
        for some in (pictures, [picture[:, ::-1] for picture in pictures])
    ]


def sound_print(mono: np.ndarray) -> list[list[float]]:
    """[N] at 16 kHz -> decibels in four bands, twenty a second: [4][T]."""
    window, hop = 1024, 16_000 // PRINT_RATE_HZ
    if len(mono) < window:
        mono = np.pad(mono, (0, window - len(mono)))
    frames = np.lib.stride_tricks.sliding_window_view(mono, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    hertz = np.fft.rfftfreq(window, 1 / 16_000)
    bands = [power[:, (hertz >= low) & (hertz < high)].sum(axis=1) for low, high in BANDS]
    decibels = 10 * np.log10(np.array(bands) + 1e-6)
    return np.round(decibels, 1).tolist()


def near_duplicates(
    bits: Sequence[Sequence[str]],
    prints: Sequence[Sequence[Sequence[float]]],
    limit: float,
    same_sound: float,
    words: Sequence[str] = (),
) -> dict[int, tuple[int, float]]:
    """Place -> (an earlier place, share of bits that differ) for each clip that shows and sounds like one
    that is kept; a limit of 0 lets all pass. `bits`: (hash, hash of the mirror image) a clip; `words`: what
    is surely said in it, "" = not known; with other words it is another clip."""
    if not bits or not limit:
        return {}
    straight, mirrored = (np.stack([signs(pair[side]) for pair in bits]) for side in (0, 1))
    size, found = straight.shape[1], dict[int, tuple[int, float]]()
    for first in range(0, len(bits), ROWS):
        rows = straight[first : first + ROWS]
        agree = np.maximum(rows @ straight.T, rows @ mirrored.T)
        differ = (1 - agree / size) / 2
        for row, shares in enumerate(differ):
            place = first + row
            for other in np.flatnonzero(shares[:place] <= limit):
                if words and words[place] and words[int(other)] and words[place] != words[int(other)]:
                    continue
                if int(other) not in found and alike(prints[place], prints[int(other)]) >= same_sound:
                    found[place] = (int(other), float(shares[other]))
                    break
    return found


def alike(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """Correlation of two prints at the best lag up to half a second, -1..1; 1 where one is nearly silent or
    too short to tell."""
    a, b = np.array(first), np.array(second)
    best = -1.0
    for lag in range(-round(MAX_LAG_S * PRINT_RATE_HZ), round(MAX_LAG_S * PRINT_RATE_HZ) + 1):
        left, right = (a[:, lag:], b) if lag >= 0 else (a, b[:, -lag:])
        length = min(left.shape[1], right.shape[1])
        if length < MIN_PRINT_S * PRINT_RATE_HZ or length < 0.7 * min(a.shape[1], b.shape[1]):
            continue
        x, y = (some[:, :length] - some[:, :length].mean(axis=1, keepdims=True) for some in (left, right))
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        best = max(best, float((x * y).sum()) / norm if norm > 1e-6 else 1.0)
    return best


def signs(text: str) -> np.ndarray:
    """±1 for each bit of a hexadecimal text."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return bits.astype(np.float32) * 2 - 1
