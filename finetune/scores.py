"""Scores of a batch of clips; `experiments` passes in the scorer (finetune knows no reward)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from finetune.executor import Stopped
from pretrain.config import one_line
from pretrain.prompt import PromptRow
from pretrain.titan.ranks import Ranks

Sums = dict[str, tuple[float, int]]  # (sum, how many)


@dataclass(frozen=True)
class Scores:
    """values: what a rubric weighs, higher is better; the rest is only logged. All [B] fp64, NaN where there
    is none."""

    values: Mapping[str, Tensor]
    parts: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # "reward.part", and rewards as they are measured
    guardrails: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # "speech_ratio", ...; "flagged" is 1 for a clip beyond a limit
    reasons: Mapping[str, str] = field(default_factory=dict)  # reward -> why some clip has no value


class Scorer(Protocol):
    """Built by its dotted name on every rank; scores that rank's clips."""

    def score(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow]) -> Scores:
        """video [B, 48, F, H, W], audio [B, 128, L], one row of the prompts each. Raises ValueError naming a
        reward that is broken."""
        ...

    def write(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], folder: Path) -> list[Path]:
        """The clips as files a person can look at."""
        ...

    def close(self) -> None: ...


def summed(scores: Scores) -> Sums:
    """(sum, count) of everything that can be averaged, over the clips that have it; `unscored/` counts the
    others."""
    found: Sums = {}
    for name, value in scores.values.items():
        found[f"reward/{name}"] = _sum(value)
        found[f"unscored/{name}"] = (float(value.isnan().sum()), len(value))
    for kind, tensors in (("part", scores.parts), ("guardrail", scores.guardrails)):
        found |= {f"{kind}/{name}": _sum(value) for name, value in tensors.items()}
    return found


def means(sums: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Means over all ranks' sums; what no clip had is left out."""
    totals: dict[str, list[float]] = {}
    for part in sums:
        for name, (total, count) in part.items():
            known = totals.setdefault(name, [0.0, 0.0])
            known[0], known[1] = known[0] + total, known[1] + count
    return {name: total / count for name, (total, count) in sorted(totals.items()) if count}


def _sum(value: Tensor) -> tuple[float, int]:
    known = ~value.isnan()
    return float(torch.where(known, value, 0.0).sum()), int(known.sum())


class RankScoring:
    """`stop_requested` may be set from a signal handler; the ranks agree on it at the next scoring."""

    def __init__(self, scorer: Scorer, ranks: Ranks) -> None:
        self.scorer, self.ranks = scorer, ranks
        self.stop_requested = False

    def score(
        self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], stoppable: bool = True
    ) -> tuple[Scores, dict[str, float]]:
        """This rank's scores and the means over all ranks. Raises ValueError where a reward failed on any
        rank, and Stopped after a signal if that is welcome here."""
        scores, error = Scores({}), ""
        try:
            scores = self.scorer.score(video, audio, rows)
        except Exception as failed:  # whatever it is, the other ranks must not be left waiting
            error = one_line(failed)
        answers = self.agree(error, json.dumps(summed(scores)), stoppable)
        return scores, means([json.loads(answer) for answer in answers])

    def agree(self, error: str = "", text: str = "{}", stoppable: bool = True) -> list[str]:
        """Every rank's text, in rank order; raises as `score` does."""
        answers = [
            json.loads(answer) for answer in self.ranks.said(json.dumps([error, self.stop_requested, text]))
        ]
        if failed := [error for error, _, _ in answers if error]:
            raise ValueError(failed[0])
        if stoppable and any(stop for _, stop, _ in answers):
            raise Stopped
        return [text for _, _, text in answers]
