"""Scoring on all ranks at once: each scores its own clips, all learn the means, and one rank's failure is everyone's."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torch import Tensor

from finetune.hands import Stopped
from finetune.scores import Scorer, Scores, means, summed
from pretrain.prompt import PromptRow
from pretrain.titan.ranks import Ranks


class RankScoring:
    """`stop_requested` may be set from a signal handler; the ranks hear of it at the next scoring."""

    def __init__(self, scorer: Scorer, ranks: Ranks) -> None:
        self.scorer, self.ranks = scorer, ranks
        self.stop_requested = False

    def score(
        self, video: Tensor, audio: Tensor, rows: Sequence[PromptRow], stoppable: bool = True
    ) -> tuple[Scores, dict[str, float]]:  # fmt: skip
        """This rank's scores and the means over all ranks. Raises ValueError where a reward failed on any rank, and Stopped after a
        signal if that is welcome here."""
        scores, error = Scores({}), ""
        try:
            scores = self.scorer.score(video, audio, rows)
        except Exception as failed:  # whatever it is, the other ranks must not be left waiting
            error = " ".join(str(failed).split()) or type(failed).__name__
        answers = self.agree(error, json.dumps(summed(scores)), stoppable)
        return scores, means([json.loads(answer) for answer in answers])

    def agree(self, error: str = "", text: str = "{}", stoppable: bool = True) -> list[str]:
        """Every rank's text, in rank order; raises as `score` does."""
        answers = [json.loads(answer) for answer in self.ranks.said(json.dumps([error, self.stop_requested, text]))]
        if failed := [said for said, _, _ in answers if said]:
            raise ValueError(failed[0])
        if stoppable and any(stop for _, stop, _ in answers):
            raise Stopped
        return [said for _, _, said in answers]
