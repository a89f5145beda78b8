"""Scores of a batch of clips; `experiments` provides the scorer (finetune imports no reward)."""

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
Batch = tuple[Tensor, Tensor, Sequence[PromptRow]]  # arguments of Scorer.score


@dataclass(frozen=True)
class Scores:
    """values: the rubric's rewards, higher is better; the rest is logged. All [B] fp64, NaN if missing."""

    values: Mapping[str, Tensor]
    # "reward.part", and rewards before negation
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    # "speech_ratio", ...; "flagged" is 1 for a clip that violates a limit
    guardrails: Mapping[str, Tensor] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)  # reward -> why some clip has no value
    # rubric.watched of the held-out prompts, higher is better: never rewarded
    judges: Mapping[str, Tensor] = field(default_factory=dict)


class Scorer(Protocol):
    """Created by dotted name on every rank; scores that rank's clips."""

    def score(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], judged: bool = False) -> Scores:
        """Score video [B, 48, F, H, W] and audio [B, 128, L] of one prompt row each.

        judged: run the judges too. Raises ValueError naming a failed reward.
        """
        ...

    def write(self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], folder: Path) -> list[Path]:
        """Write the clips as media files."""
        ...

    def close(self) -> None: ...


def summed(scores: Scores) -> Sums:
    """(sum, count) of every averaged quantity over the clips that have it.

    `unscored/` counts the other clips.
    """
    found: Sums = {}
    for name, value in scores.values.items():
        found[f"reward/{name}"] = _sum(value)
        found[f"unscored/{name}"] = (float(value.isnan().sum()), len(value))
    for kind, tensors in (
        ("part", scores.parts),
        ("guardrail", scores.guardrails),
        ("judge", scores.judges),
    ):
        found |= {f"{kind}/{name}": _sum(value) for name, value in tensors.items()}
    return found


def means(sums: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Means over all ranks' sums; quantities without clips are left out."""
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
    """Scores with all ranks. `stop_requested` may be set by a signal handler; ranks agree on it."""

    def __init__(self, scorer: Scorer, ranks: Ranks) -> None:
        self.scorer, self.ranks = scorer, ranks
        self.stop_requested = False

    def stop(self) -> None:
        """Request a stop, from a signal handler; a scorer with `interrupt` ends its waits for servers."""
        self.stop_requested = True
        if interrupt := getattr(self.scorer, "interrupt", None):
            interrupt()

    def score(
        self, batches: Sequence[Batch], held_out: bool = False
    ) -> tuple[list[Scores], dict[str, float], dict[str, str]]:
        """This rank's scores of each batch, and over all ranks the means and why some clip has no value of a
        reward (the first rank's reason); of held-out prompts the judges' too.

        Raises Stopped after a signal unless `held_out`, ValueError if a reward failed on any rank.
        """
        scores: list[Scores] = []
        error = ""
        try:
            scores = [self.scorer.score(*batch, held_out) for batch in batches]
        except Exception as failed:  # caught here so that the other ranks do not wait in the gather forever
            error = one_line(failed)
        reasons = {name: why for some in reversed(scores) for name, why in some.reasons.items()}
        text = json.dumps([[summed(some) for some in scores], reasons])
        answers = [json.loads(answer) for answer in self.agree(error, text, not held_out)]
        everywhere = {name: why for _, found in reversed(answers) for name, why in found.items()}
        return scores, means([sums for found, _ in answers for sums in found]), everywhere

    def agree(self, error: str = "", text: str = "{}", stoppable: bool = True) -> list[str]:
        """Every rank's text, in rank order; raises as `score` does."""
        # one collective carries error, stop flag and scores, so that all ranks take the same branch below
        answers = [
            json.loads(answer)
            for answer in self.ranks.gathered_texts(json.dumps([error, self.stop_requested, text]))
        ]
        # first, as a signal also ends what waits for a server: the round is not learned from in any case
        if stoppable and any(stop for _, stop, _ in answers):
            raise Stopped
        if failed := [error for error, _, _ in answers if error]:
            raise ValueError(failed[0])
        return [text for _, _, text in answers]
