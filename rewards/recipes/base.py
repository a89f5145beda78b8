"""Shared parts of reward recipes: catalog entries, shared models, common options, missing weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from rewards.base import Reward
from rewards.metric import Metric, MetricRole

PartT = TypeVar("PartT")
SPEED_ONLY = {"speed_only": True}  # metadata of an option that changes no score


class Shared:
    """Parts that several rewards use, built once; what can be closed is closed with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._parts: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], PartT]) -> PartT:
        if key not in self._parts:
            part: Any = make()
            if hasattr(part, "close"):
                self._stack.callback(part.close)
            self._parts[key] = part
        return self._parts[key]


@dataclass(frozen=True)
class NoOptions:
    """An empty options class."""


@dataclass(frozen=True)
class PartMetric:
    """A part of a score that is reported as a separate metric, in the role of its reward."""

    part: str
    title: str
    name: str = ""  # of the metric, "" = the part's
    lower_is_better: bool = False
    has_direction: bool = True
    unit: str = ""


@dataclass(frozen=True)
class Entry:
    """A reward of the catalog. `make(options, shared)` builds it from its options dataclass.

    Fields title to gap_closed are those of rewards.metric.Metric and are declared only here.
    """

    make: Callable[[Any, Shared], Reward]
    options: type
    title: str
    role: MetricRole = "watched"  # a judge measures what was trained on others; no rubric may weigh it
    lower_is_better: bool = False  # a rubric must give it a negative weight
    unit: str = ""
    numerator: str = ""
    denominator: str = ""
    gap_closed: bool = False
    parts: tuple[PartMetric, ...] = ()
    offline: bool = True  # runs with what a checkout and its pipeline have
    picture: bool = False  # needs frames; the others use sound only
    sound: bool = True  # hears the sound; False: looks at the picture only
    # its value depends on what was asked for: the words, the reference voice, the first frame. Without, a
    # policy can raise it by giving up the prompt
    reads_prompt: bool = True
    meta: tuple[str, ...] = ()  # what a prompt's `meta` must name: mouth_boxes, voices
    # a clip is eligible if it has this condition
    about: Literal["any", "speech", "voice", "reference", "text", "image"] = "any"

    @property
    def judge(self) -> bool:
        return self.role == "judge"

    def metrics(self, name: str) -> list[Metric]:
        """The reward of this `name`, then its listed parts."""
        own = Metric(
            name,
            self.title,
            name,
            numerator=self.numerator,
            denominator=self.denominator,
            lower_is_better=self.lower_is_better,
            unit=self.unit,
            role=self.role,
            gap_closed=self.gap_closed,
        )
        return [
            own,
            *(
                Metric(
                    part.name or part.part,
                    part.title,
                    name,
                    part.part,
                    lower_is_better=part.lower_is_better,
                    has_direction=part.has_direction,
                    unit=part.unit,
                    role=self.role,
                )
                for part in self.parts
            ),
        ]


@dataclass(frozen=True)
class WeightsOptions:
    """A file or folder of external weights; an empty sha256 accepts any file and prints its digest."""

    weights: Path | None = None
    sha256: str = ""


@dataclass(frozen=True)
class DeviceOptions(WeightsOptions):
    """Weights, and where the network runs: auto (a GPU where there is one), cpu, cuda, cuda:1."""

    device: str = field(default="cpu", metadata=SPEED_ONLY)


@dataclass(frozen=True)
class ParkedOptions(DeviceOptions):
    """Also whether the network is on its device only while it scores, and in the host's memory between: for a
    GPU that others need meanwhile, as alignment in one process does."""

    parked: bool = field(default=False, metadata=SPEED_ONLY)


class WeightsMissing(ValueError):
    """A reward needs a weight file that is not configured."""


def needed(path: Path | None, name: str, option: str = "weights") -> Path:
    """The path; raises WeightsMissing naming the option to set."""
    if path is None:
        raise WeightsMissing(f"{name}: weights missing; set {name}.{option}=PATH")
    return path
