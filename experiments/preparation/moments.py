"""Near-duplicates that are cut at other places: the same sound at a lag, and the same pictures at that lag.

Candidates come from an index of short sound fingerprints, so that the work grows with the number of clips and
not with its square; sound and pictures of a candidate are then compared moment by moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.preparation.duplicates import MIN_PRINT_S, PRINT_RATE_HZ, signs

PICTURE_S = 0.25  # between the pictures that are hashed
FRAMES = 8  # of a fingerprint, a twentieth of a second each
UNSURE = 5  # bits of one that may be other ones, as a cut between two frames of the print makes them
MIN_VOTES = 3  # fingerprints that agree on a lag
LOUD_DB = 40.0  # below the loudest; quieter frames have no fingerprint
COMMON = 40  # fingerprints of more places say nothing
MIN_OVERLAP = 0.5  # of the shorter clip
NEAR = 1  # steps of the print around a lag that is tried

Print = Sequence[Sequence[float]]  # decibels [4][T], as `duplicates.sound_print` has them
ClipMoments = Sequence[Sequence[str]]  # hashes of pictures and of their mirror images, four a second


def picture_track(frames: np.ndarray, fps: float) -> list[list[str]]:
    """Difference hashes of uint8 [T, H, W, 3], four a second, and those of the mirror images."""
    from imagehash import dhash
    from PIL import Image

    places = np.arange(0, len(frames), fps * PICTURE_S).round().astype(int)
    shown = [np.ascontiguousarray(frames[min(place, len(frames) - 1)]) for place in places]
    return [
        [str(dhash(Image.fromarray(np.ascontiguousarray(picture)))) for picture in some]
        for some in (shown, [picture[:, ::-1] for picture in shown])
    ]


def shifted_duplicates(
    prints: Sequence[Print], tracks: Sequence[ClipMoments], limit: float, same_sound: float
) -> dict[int, tuple[int, float]]:
    """Place -> (an earlier place that is kept, share of bits that differ) for clips of the same moments."""
    index: dict[int, list[tuple[int, int]]] = {}
    found: dict[int, tuple[int, float]] = {}
    for place, sound in enumerate(prints):
        keys = list(_fingerprints(np.array(sound)))
        votes: Counter[tuple[int, int]] = Counter()
        for at, key, unsure in keys:
            for change in unsure:
                others = index.get(key ^ change, [])
                if len(others) <= COMMON:
                    votes.update((other, at - other_at) for other, other_at in others)
        for (other, lag), count in votes.most_common():
            if count < MIN_VOTES:
                break
            share = _differing(tracks[place], tracks[other], lag / PRINT_RATE_HZ)
            if share <= limit and _same_sound(sound, prints[other], lag) >= same_sound:
                found[place] = (other, share)
                break
        if place not in found:
            for at, key, _ in keys:
                index.setdefault(key, []).append((place, at))
    return found


def _fingerprints(decibels: np.ndarray) -> Iterator[tuple[int, int, list[int]]]:
    """(frame, key, changes of its unsure bits): signs of how differences of neighbouring bands change over 8
    frames, where it is loud; after Haitsma and Kalker 2002."""
    if decibels.shape[1] < FRAMES + 1:
        return
    slope = np.diff(decibels[:-1] - decibels[1:], axis=1)  # [3, T - 1]
    loud = decibels.max(axis=0) > decibels.max() - LOUD_DB
    weights = 1 << np.arange(3 * FRAMES)
    for at in range(slope.shape[1] - FRAMES + 1):
        if loud[at : at + FRAMES].all():
            values = slope[:, at : at + FRAMES].ravel()
            weak = weights[np.argsort(np.abs(values))[:UNSURE]].tolist()
            changes = [0]
            for bit in weak:
                changes += [change ^ bit for change in changes]
            yield at, int(weights[values > 0].sum()), changes


def _same_sound(first: Print, second: Print, lag: int) -> float:
    """Best correlation of both prints where they overlap, `lag` frames of the first before the second."""
    a, b, best = np.array(first), np.array(second), -1.0
    for shift in range(lag - NEAR, lag + NEAR + 1):
        left, right = (a[:, shift:], b) if shift >= 0 else (a, b[:, -shift:])
        length = min(left.shape[1], right.shape[1])
        least = max(MIN_PRINT_S * PRINT_RATE_HZ, MIN_OVERLAP * min(a.shape[1], b.shape[1]))
        if length < least:
            continue
        x, y = (part[:, :length] - part[:, :length].mean(axis=1, keepdims=True) for part in (left, right))
        norm = float(np.linalg.norm(x) * np.linalg.norm(y))
        best = max(best, float((x * y).sum()) / norm if norm > 1e-6 else -1.0)
    return best


def _differing(first: ClipMoments, second: ClipMoments, lag_s: float) -> float:
    """Mean share of bits that differ between pictures of the same moments, the smaller of both ways round."""
    shares = []
    for side in (0, 1):
        pairs = [
            (one, second[side][other])
            for place, one in enumerate(first[0])
            if 0 <= (other := round(place - lag_s / PICTURE_S)) < len(second[side])
        ]
        shares += (
            [float(np.mean([np.mean(signs(one) != signs(other)) for one, other in pairs]))] if pairs else []
        )
    return min(shares, default=1.0)
