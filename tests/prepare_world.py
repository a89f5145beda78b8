"""Raw videos with known truth for `nava prepare`: scenes, words with times, voices, formats, duplicates."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from pretrain.data.corpus.bank import load_bank
from pretrain.media.write import write_mp4

RATE = 16_000
WIDTH, HEIGHT = 160, 96
VOICES = ("slt", "rms", "awb", "kal16")


@dataclass(frozen=True)
class Said:
    """One word of one voice."""

    word: str
    voice: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Video:
    """A raw video and its truth. `cuts`: seconds at which new scenes begin."""

    path: Path
    seconds: float
    said: tuple[Said, ...] = ()
    cuts: tuple[float, ...] = ()


@dataclass
class Sound:
    """A sound track that is filled word by word."""

    seconds: float
    seed: int = 0
    noise_db: float = -70.0
    said: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        noise = np.random.default_rng(self.seed).standard_normal(round(self.seconds * RATE))
        self.samples = (noise * 10 ** (self.noise_db / 20)).astype(np.float32)

    def phrase(self, at_s: float, words: Sequence[str], voice: str, gap_s: float = 0.08) -> float:
        """Words in a row; answers the end in seconds."""
        bank = load_bank()
        for word in words:
            takes = bank.utterances[word, voice]
            sound = takes[len(takes) // 2].waveform
            first = round(at_s * RATE)
            room = self.samples[first : first + len(sound)]
            room += 0.7 * sound[: len(room)]
            self.said.append(Said(word, voice, at_s, at_s + len(sound) / RATE))
            at_s += len(sound) / RATE + gap_s
        return at_s - gap_s


def scene(
    seconds: float, seed: int, fps: float = 24.0, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> np.ndarray:
    """A smooth texture of colours of its own that drifts: uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(1000 + seed)
    height, width = size
    count = round(seconds * fps)
    room = count // 2 + 40
    small = rng.uniform(0, 1, (6, 6 + room // 24, 3))
    grown = np.repeat(np.repeat(small, 24, axis=0), 24, axis=1)[: height + 8, : width + room]
    grown = np.pad(
        grown,
        ((0, max(0, height + 8 - grown.shape[0])), (0, max(0, width + room - grown.shape[1])), (0, 0)),
        "wrap",
    )
    low, high = rng.uniform(20, 110, 3), rng.uniform(140, 250, 3)
    picture = (low + grown * (high - low)).astype(np.uint8)
    down = [abs((i + 8) % 16 - 8) for i in range(count)]  # to and fro, a pixel per picture
    return np.stack([picture[y : y + height, i // 2 : i // 2 + width] for i, y in enumerate(down)])


def write(
    path: Path, frames: np.ndarray, sound: Sound, fps: float = 24.0, cuts: Sequence[float] = ()
) -> Video:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, frames, fps, sound.samples, RATE)
    return Video(path, len(frames) / fps, tuple(sound.said), tuple(cuts))


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True
    )


def talk(path: Path, seed: int, voices: Sequence[str], seconds: float = 6.0, fps: float = 24.0) -> Video:
    """One scene in which the voices take turns, half a second between them."""
    rng = np.random.default_rng(seed)
    words = list(load_bank().words)
    sound, at_s, turn = Sound(seconds, seed), 0.5, 0
    while True:
        chosen = [words[i] for i in rng.choice(len(words), 4, replace=False)]
        length = sum(
            len(load_bank().utterances[word, voices[turn % len(voices)]][0].waveform) for word in chosen
        )
        if at_s + length / RATE * 1.3 + 0.4 > seconds:
            break
        at_s = sound.phrase(at_s, chosen, voices[turn % len(voices)]) + 0.55
        turn += 1
    return write(path, scene(seconds, seed, fps), sound, fps)
