"""What FFmpeg's own program reads out of a file: the independent reading that ours is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from builders import Source, ffmpeg


@dataclass(frozen=True)
class Reading:
    """Frames upright at their times, samples at theirs; None = no such stream."""

    frames: np.ndarray | None  # uint8 [T, H, W, 3]
    frame_times_s: np.ndarray | None  # [T]
    samples: np.ndarray | None  # float32 [C, N] as they come, holes left out
    sample_starts: np.ndarray | None  # [P] of the pieces in samples of the timeline
    piece_sizes: np.ndarray | None  # [P] samples
    sample_rate_hz: int = 0


JITTER_S = 0.005
Built = Callable[[Source], tuple[Path, Reading]]


def read_by_ffmpeg(path: Path, folder: Path, *, video: bool = True, audio: bool = True) -> Reading:
    """Every frame once (`-fps_mode passthrough`), timestamps as stored (`-copyts`), FFmpeg's choice of
    streams."""
    names = {name: folder / f"{path.name}.{name}" for name in ("v.txt", "rgb", "a.txt", "f32")}
    outputs: list[str | Path] = []
    if video:
        exact = ("-an", "-fps_mode", "passthrough", "-enc_time_base", "demux", "-pix_fmt", "rgb24")
        outputs += [*exact, "-f", "framecrc", names["v.txt"], *exact, "-f", "rawvideo", names["rgb"]]
    if audio:
        plain = ("-vn", "-c:a", "pcm_f32le")
        outputs += [*plain, "-f", "framecrc", names["a.txt"], *plain, "-f", "f32le", names["f32"]]
    ffmpeg("-copyts", "-threads", "1", "-i", path, *outputs)
    frames = times = samples = starts = sizes = None
    rate = 0
    if video:
        head, rows = _listed(names["v.txt"])
        width, height = map(int, head["dimensions"].split("x"))
        frames = np.fromfile(names["rgb"], np.uint8).reshape(-1, height, width, 3)
        times = rows[:, 0] * float(Fraction(head["tb"]))
    if audio:
        head, rows = _listed(names["a.txt"])
        rate = int(head["sample_rate"])
        flat = np.fromfile(names["f32"], np.float32)
        samples = flat.reshape(-1, len(flat) // int(rows[:, 1].sum())).T
        starts, sizes = rows[:, 0] * float(Fraction(head["tb"])) * rate, rows[:, 1]
    for name in names.values():
        name.unlink(missing_ok=True)
    return Reading(frames, times, samples, starts, sizes, rate)


def _listed(path: Path) -> tuple[dict[str, str], np.ndarray]:
    """Head of a framecrc and [F, 2]: pts, duration."""
    head, rows = {}, []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            key, _, value = line[1:].partition(": ")
            head[key.split(" ")[0]] = value
        else:
            _, _, pts, duration, *_ = line.split(",")
            rows.append((int(pts), int(duration)))
    return head, np.array(rows, np.int64).reshape(-1, 2)


def on_timeline(reading: Reading, zero_s: float) -> np.ndarray:
    """float32 [C, N]: sample n is heard at zero_s + n / rate; holes are zero.

    Pieces whose times fit to JITTER_S follow each other: containers round times to a millisecond.
    """
    assert reading.samples is not None and reading.sample_starts is not None
    assert reading.piece_sizes is not None
    first = round(reading.sample_starts[0] - zero_s * reading.sample_rate_hz)
    origin = reading.sample_starts[0] - max(0, first)
    parts, at, end = [np.zeros((len(reading.samples), max(0, first)), np.float32)], 0, max(0, first)
    for start, size in zip(reading.sample_starts - origin, reading.piece_sizes, strict=True):
        hole = round(start - end) if start - end > JITTER_S * reading.sample_rate_hz else 0
        parts += [np.zeros((len(reading.samples), hole), np.float32), reading.samples[:, at : at + size]]
        at, end = at + size, end + hole + size
    return np.concatenate(parts, axis=1)[:, max(0, -first) :]
