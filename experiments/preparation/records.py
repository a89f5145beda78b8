"""What preparation knows of a source and of a clip. Times in seconds; frozen, steps return new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.media.channels import mixed
from pretrain.media.samples import to_rate

SPEECH_RATE_HZ = 16_000
Stretch = tuple[float, float]  # seconds, the end is exclusive


@dataclass(frozen=True)
class GivenText:
    """What lies beside a source: a caption (with its speech spans), a transcript, or subtitles with times."""

    caption: str = ""
    transcript: str = ""
    cues: tuple[tuple[float, float, str], ...] = ()
    speaker: str = ""
    reference: str = ""  # path of a sound
    digest: str = ""  # of the files it was read from


@dataclass(frozen=True)
class RawVideo:
    """A file to be prepared; `name` is its path relative to the folder that was given.

    One of an object store has a `url`, its `version` (a digest that changes with the content) and size; its
    `path` is a file only once it was fetched (`preparation.remote`).
    """

    path: Path
    name: str
    data_id: str
    given: GivenText = GivenText()
    url: str = ""
    version: str = ""
    size: int = 0

    @property
    def num_bytes(self) -> int:
        """0 for what is not there."""
        if self.url:
            return self.size
        return self.path.stat().st_size if self.path.is_file() else 0


@dataclass(frozen=True)
class Word:
    """A word as written. `confidence` 0..1 of a recogniser; 1 for a given text. `fits` False: a text that was
    aligned and is not what is heard there."""

    text: str
    start_s: float
    end_s: float
    confidence: float = 1.0
    fits: bool = True


@dataclass(frozen=True)
class Heard:
    """The words of a source, and where there is speech at all. `by`: who found the words."""

    words: tuple[Word, ...]
    speech: tuple[Stretch, ...]
    by: str
    blocked: tuple[Stretch, ...] = ()  # where nothing may be cut besides in words
    alignment: float | None = None  # score of a given text


@dataclass(frozen=True)
class SpokenSpan:
    """A stretch of speech of one voice within a clip; `voice`: its embedding, () where it is too short."""

    text: str
    start_s: float
    end_s: float
    speaker: str = ""
    voice: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class RawClip:
    """A clip of a source, in memory, on its way through the steps."""

    data_id: str
    source: str
    start_s: float  # within its source
    fps: float
    frames: np.ndarray  # uint8 [T, H, W, 3]
    waveform: np.ndarray  # float32 [C, N], C 1 or 2
    rate_hz: int
    given: GivenText
    words: tuple[Word, ...] = ()  # times within the clip
    speech: tuple[Stretch, ...] = ()
    words_by: str = ""
    spans: tuple[SpokenSpan, ...] = ()
    text: str = ""  # the caption with its spans
    caption_by: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        return len(self.frames) / self.fps

    @cached_property
    def mono(self) -> np.ndarray:
        """float32 [N] at 16 kHz."""
        return to_rate(mixed(self.waveform, 1), self.rate_hz, SPEECH_RATE_HZ)

    def measured(self, **measures: float) -> RawClip:
        return replace(self, measures={**self.measures, **measures})

    def labelled(self, **labels: Any) -> RawClip:
        return replace(self, labels={**self.labels, **labels})


@dataclass(frozen=True)
class Rejection:
    """Why a source or clip is not kept: the stage, what was measured, the limit, and a sentence."""

    stage: str
    measure: str
    value: float | None
    limit: float | None
    reason: str
    source: str = ""
    data_id: str = ""  # of the clip; "" = the whole source
    start_s: float = 0.0
    duration_s: float = 0.0
    preview: str = ""  # a small mp4, relative to the output
    clip: RawClip | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        names = ("source", "data_id", "stage", "measure", "value", "limit", "reason", "start_s", "duration_s")
        found = {name: getattr(self, name) for name in names}
        found |= {"source": printable(self.source), "reason": printable(self.reason)}
        return {**found, "start_s": round(self.start_s, 4), "duration_s": round(self.duration_s, 4)} | (
            {"preview": self.preview} if self.preview else {}
        )


def printable(text: str) -> str:
    """A text with bytes of names that are not UTF-8 written as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def beyond(stage: str, measure: str, value: float, limit: float, reason: str) -> Rejection:
    """A measure that does not keep its limit."""
    return Rejection(stage, measure, round(float(value), 4), limit, reason)
