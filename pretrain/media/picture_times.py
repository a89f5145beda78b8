"""When each picture of a file is shown: one account of it, for whole clips and for passing pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import numpy as np

from pretrain.media.timeline import (
    Showing,
    increasing,
    nominal_rate,
    num_ticks,
    show,
    show_stretch,
)


@dataclass(frozen=True, eq=False)
class PictureTimes:
    """Pictures in the order in which they are shown, each from its time until the next one's."""

    times: np.ndarray  # float64 [N], seconds, strictly increasing
    nominal: float  # pictures a second
    last_s: float  # how long the last one is shown
    interlaced: np.ndarray  # bool [N]

    @property
    def end_s(self) -> float:
        return float(self.times[-1]) + self.last_s

    def num_ticks(self, fps: float) -> int:
        """Pictures of the whole file at a constant rate."""
        return num_ticks(self.times, fps, self.last_s)

    def whole(self, fps: float) -> Showing:
        """Which picture is shown at each tick from the first one's time to the end (`timeline.show`)."""
        return show(self.times, fps, self.nominal, self.last_s)

    def stretch(self, start_s: float, count: int, fps: float) -> Showing:
        """The same of `count` ticks from `start_s` on (`timeline.show_stretch`)."""
        return show_stretch(self.times, fps, self.nominal, self.last_s, start_s, count)

    def mended(self, showing: Showing) -> dict[str, float]:
        """What is to know of these ticks: `repeated_frames` of holes, `interlaced_frames`."""
        found = {
            "repeated_frames": float(showing.repeated),
            "interlaced_frames": float(self.interlaced[showing.index].sum()),
        }
        return {name: count for name, count in found.items() if count}


@dataclass(eq=False)
class PictureLog:
    """What the frames of a stream say of their times, in the order in which they come out of the decoder.

    `counted`: the container counts its packets and has no presentation times (avi). Then each picture has the
    decoding time of the packet with which it came out, and all of them are early by as many places as the
    decoder held back at the end: the first picture is shown where the stream begins.
    """

    counted: bool = False
    times: list[float] = field(default_factory=list)  # seconds of the file's clock, NaN where not given
    interlaced: list[bool] = field(default_factory=list)
    last_s: float = 0.0  # how long the last one is shown; 0 where the file does not say

    def add(self, frame: av.VideoFrame) -> float:
        """Answers its time, NaN where it has none."""
        if self.counted:
            at = (
                math.nan
                if frame.dts is None or frame.time_base is None
                else float(frame.dts * frame.time_base)
            )
        else:
            at = math.nan if frame.time is None else float(frame.time)
        self.times.append(at)
        self.interlaced.append(bool(frame.interlaced_frame))
        self.last_s = float((frame.duration or 0) * (frame.time_base or 0))
        return at

    def settled(self, declared: Sequence[float | None], zero_s: float = 0.0) -> PictureTimes:
        """The times from `zero_s` of the file's clock on; `declared`: rates of the header. At least one."""
        raw = np.array(self.times, np.float64)
        nominal = nominal_rate(raw, declared)
        if self.counted:
            known = np.flatnonzero(np.isfinite(raw))
            held_back = len(raw) - 1 - known[-1] if len(known) else 0
            raw -= held_back / nominal
        times = increasing(raw - zero_s, 1.0 / nominal)
        last_s = self.last_s if self.last_s > 0.5 / nominal else 1.0 / nominal
        return PictureTimes(times, nominal, last_s, np.array(self.interlaced, bool))
