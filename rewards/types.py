"""The input (Clip) and output (Score) of a reward; independent of any model.

`rewards` stands alone: any model's clips can be put into a Clip.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; the end is exclusive


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip in memory. A missing input that a scorer needs gives NaN with a reason.

    What a scorer needs and does not find makes its score NaN with a reason.
    """

    waveform: np.ndarray | None  # float32 [N] mono or [C, N] in -1..1
    sample_rate_hz: int
    frames: np.ndarray | None = None  # uint8 [T, H, W, 3] RGB
    fps: float = 24.0
    prompt: str = ""
    spans: tuple[str, ...] = ()  # the words to be spoken, one text per span of the prompt
    references: tuple[
        np.ndarray | None, ...
    ] = ()  # float32 [N] at 16 kHz, the voice of each span; None = free
    voices: tuple[str, ...] = ()  # speaker name of each span, where speakers are named
    name: str = ""  # excludes the clip from comparisons with itself
    mouth_boxes: tuple[Box, ...] = ()  # one per face
    face_boxes: tuple[Box, ...] = ()
    span_times: tuple[
        tuple[float, float], ...
    ] = ()  # start and end of each span in seconds, where they are known
    first_frame: np.ndarray | None = None  # uint8 [H, W, 3] RGB, the conditioning image of the clip
    # float32 [N] at `sample_rate_hz`, the real recording this clip is an answer to
    reference_sound: np.ndarray | None = None
    # what its reader put where the file has holes, such as `repeated_frames` and `silence_s`
    mended: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Result of one scorer for one clip: `value` is NaN exactly if `reason` is set."""

    value: float
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    text: str = ""  # transcript of a recogniser
    seconds: float = 0.0  # this clip's share of the batch's wall time

    def part(self, name: str) -> Score:
        """A part as a Score, with a reason if it is missing; name "" is the score itself."""
        if self.reason or not name:
            return self
        value = self.parts.get(name, math.nan)
        return Score(value, f"no {name}" if math.isnan(value) else "")


def split_part(name: str, rewards: Container[str]) -> tuple[str, str]:
    """(reward, part) of `reward.part` or `package.module:Class.part`; part "" where the whole name is among
    `rewards`."""
    if name in rewards:
        return name, ""
    module, colon, rest = name.rpartition(":")
    reward, _, part = rest.partition(".")
    return f"{module}{colon}{reward}", part
