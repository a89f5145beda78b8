"""One thing that must hold, and the word a person reads for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """`met` is None when it was not measured."""

    metric: str
    value: float | None
    limit: str  # as a person reads it
    met: bool | None
    n: int
    aim: bool = False  # wished for, not demanded
    interval: tuple[float, float] | None = None
    counted: str = "clips"  # what n counts


def verdict_word(verdict: Verdict) -> str:
    """pass or SHORT for what must hold; reached or not reached for aims."""
    if verdict.met is None:
        return "not measured"
    if verdict.aim:
        return "aim reached" if verdict.met else "aim not reached"
    return "pass" if verdict.met else "SHORT"
