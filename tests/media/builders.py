"""Small media files built by FFmpeg's own binary: each frame's number can be read back from its picture.

A picture is a grid of 4 x 8 cells: the corners are red, green, blue and grey, so that a turned or mirrored
picture is seen; the two middle rows hold the frame's number in eight bits, and its complement. The sound is
noise without repetition, so that two readings have one lag. Building is deterministic.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np

ROWS, COLUMNS = 4, 8
CORNERS = {(0, 0): (220, 30, 30), (0, -1): (30, 200, 30), (-1, 0): (40, 40, 220), (-1, -1): (128, 128, 128)}
EXACT = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-threads", "1")
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-pix_fmt", "yuv420p")
AAC = ("-c:a", "aac", "-b:a", "96k")
_STARTING = threading.Lock()  # threads that start processes at the same time have been seen to fail


@dataclass(frozen=True)
class Source:
    """How a file is built: raw pictures and sound in, options of FFmpeg, passes of stream copy after it."""

    name: str  # with the suffix, which is the container
    video: tuple[str, ...] | None = H264
    audio: tuple[str, ...] | None = AAC
    fps: str = "24"
    num_frames: int = 24
    height: int = 64
    width: int = 96
    sample_rate_hz: int = 16_000
    layout: str = "mono"
    filters: tuple[str, ...] = ()  # of the picture
    sound_filters: tuple[str, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()  # options of stream copies, "IN" in them is the file before

    @property
    def seconds(self) -> float:
        return self.num_frames / float(Fraction(self.fps))


def ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """Runs FFmpeg and returns its standard output; RuntimeError with its last lines where it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y"]
    if stdin is not None:
        command.remove("-nostdin")
    with _STARTING:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    out, said = process.communicate(stdin, timeout=60)
    if process.returncode:
        raise RuntimeError(f"ffmpeg {' '.join(map(str, arguments))}: {said.decode()[-600:]}")
    return out


def numbered(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [T, H, W, 3], the number of each frame in its picture."""
    return np.stack([numbered_frame(number, height, width) for number in range(num_frames)])


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]"""
    cells = np.full((ROWS, COLUMNS, 3), 90, np.uint8)
    for place, colour in CORNERS.items():
        cells[place] = colour
    bits = np.array([number >> bit & 1 for bit in range(COLUMNS)], np.uint8)
    cells[1] = (30 + 195 * bits)[:, None]
    cells[2] = (225 - 195 * bits)[:, None]
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    return cells[rows[:, None], columns]


def number_of(frame: np.ndarray) -> int:
    """The number in an upright picture of any size; -1 where the bits do not fit their complement."""
    cells = cell_colours(frame).mean(axis=-1)
    bits, complement = cells[1] > 128, cells[2] > 128
    if not np.array_equal(bits, ~complement):
        return -1
    return int((bits * 2 ** np.arange(COLUMNS)).sum())


def cell_colours(frame: np.ndarray) -> np.ndarray:
    """[4, 8, 3]: mean colour of the middle of each cell of a uint8 [H, W, 3] picture."""
    height, width = frame.shape[:2]
    cell_height, cell_width = height / ROWS, width / COLUMNS
    found = np.empty((ROWS, COLUMNS, 3))
    for row in range(ROWS):
        for column in range(COLUMNS):
            top, left = int((row + 0.3) * cell_height), int((column + 0.3) * cell_width)
            bottom, right = int((row + 0.7) * cell_height) + 1, int((column + 0.7) * cell_width) + 1
            found[row, column] = frame[top:bottom, left:right].mean(axis=(0, 1))
    return found


def sound(seconds: float, sample_rate_hz: int = 16_000, channels: int = 1, peak: float = 0.5) -> np.ndarray:
    """float32 [C, N]: noise below 3 kHz, another in each channel, peaks at about `peak`."""
    num_samples = round(seconds * sample_rate_hz)
    spectrum = np.random.default_rng(7).standard_normal((channels, num_samples // 2 + 1, 2)) @ [1, 1j]
    frequencies = np.fft.rfftfreq(num_samples, 1 / sample_rate_hz)
    wave = np.fft.irfft(spectrum * (frequencies < 3000) * (frequencies > 80), num_samples)
    return (peak * wave / np.abs(wave).max()).astype(np.float32)


def lag_s(heard: np.ndarray, true: np.ndarray, sample_rate_hz: int) -> float:
    """How much later [N] `heard` is than [M] `true`, by the highest correlation."""
    size = 1 << (len(heard) + len(true)).bit_length()
    product = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(true, size))
    best = int(np.fft.irfft(product, size).argmax())
    return (best - size if best > size // 2 else best) / sample_rate_hz


def build(source: Source, folder: Path) -> Path:
    """Writes the file into `folder`, through the stream copies that it asks for."""
    path = folder / source.name
    arguments: list[str | Path] = []
    if source.video is not None:
        shape = (source.num_frames, source.height, source.width)
        size = f"{source.width}x{source.height}"
        arguments += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", source.fps]
        arguments += ["-i", raw_frames(folder, *shape)]
    if source.audio is not None:
        arguments += ["-f", "f32le", "-ar", str(source.sample_rate_hz), "-ch_layout", source.layout]
        arguments += ["-i", raw_sound(folder, source.seconds, source.sample_rate_hz, source.layout)]
    if source.filters:
        arguments += ["-vf", ",".join(source.filters), "-fps_mode", "passthrough"]
    if source.sound_filters:
        arguments += ["-af", ",".join(source.sound_filters)]
    target = path if not source.copies else folder / f"pass0_{source.name}"
    ffmpeg(*arguments, *EXACT, *(source.video or ()), *(source.audio or ()), target)
    for turn, options in enumerate(source.copies, start=1):
        before, target = target, path if turn == len(source.copies) else folder / f"pass{turn}_{source.name}"
        stream_copy(before, target, options)
        before.unlink()
    return path


def stream_copy(before: Path, target: Path, options: Sequence[str]) -> None:
    """Packets into another file; what stands in front of "IN" are options of the input."""
    at = options.index("IN") if "IN" in options else 0
    given = [option for option in options[at:] if option != "IN"]
    chosen = () if "-map" in given else ("-map", "0")
    ffmpeg(*options[:at], "-i", before, *chosen, "-c", "copy", "-fflags", "+bitexact", *given, target)


@lru_cache(64)
def raw_frames(folder: Path, num_frames: int, height: int, width: int) -> Path:
    path = folder / f"frames_{num_frames}_{height}x{width}.rgb"
    path.write_bytes(numbered(num_frames, height, width).tobytes())
    return path


@lru_cache(64)
def raw_sound(folder: Path, seconds: float, sample_rate_hz: int, layout: str) -> Path:
    path = folder / f"sound_{round(seconds * 1000)}_{sample_rate_hz}_{layout}.f32"
    path.write_bytes(sound(seconds, sample_rate_hz, CHANNELS[layout]).T.tobytes())
    return path


CHANNELS = {"mono": 1, "stereo": 2, "2.1": 3, "quad": 4, "5.0": 5, "5.1": 6, "7.1": 8}
