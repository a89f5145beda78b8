"""Prompts set aside from training: one clip each by the averaged weights, always from the same noise, scored and looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finetune.align_run import AlignRun
from finetune.checkpoint import Progress
from finetune.prompts import share
from finetune.rollout import ask, roll_out
from finetune.scoring import RankScoring
from finetune.trainer import Trainer
from pretrain.codecs.base import Codecs
from pretrain.prompt import PromptRow
from pretrain.titan.ema import local_shard

SAMPLES = "samples"


class Aside:
    """`best` holds the averaged weights of the best scoring where stopping early asks for them, else nothing."""

    def __init__(
        self, run: AlignRun, trainer: Trainer, codecs: Codecs, rows: tuple[PromptRow, ...], voices: Mapping[Path, Tensor],
        scoring: RankScoring,
    ) -> None:  # fmt: skip
        self.run, self.config, self.trainer, self.scoring = run, run.config, trainer, scoring
        ranks = trainer.ranks
        self.rows = share(rows, ranks.rank, ranks.world_size)
        self.asked = ask(self.rows, 1, codecs, voices, run.config) if self.rows else None
        averaged = trainer.policy.ema.weights
        self.best = {name: value.detach().clone() for name, value in averaged.items()} if run.config.stop.patience else {}
        self.written: list[Path] = []

    def score(self, progress: Progress, rounds: int) -> dict[str, float]:
        """`aside/...` means of all ranks; takes note in `progress` and `best` where the total is the best. All ranks call it."""
        if self.asked is None:
            return {}
        trainer, first = self.trainer, self.config.phases[0][1]
        with trainer.policy.averaged():
            clips = roll_out(
                trainer.policy, "default", self.asked, first.sampler, first.rollout_batch, (self.config.seed, "aside"), trainer.ranks.device
            )  # fmt: skip
        scores, found = self.scoring.score(clips.video, clips.audio, self.rows, stoppable=False)
        if trainer.ranks.rank == 0 and self.config.samples:
            number = min(self.config.samples, len(self.rows))
            folder = self.run.out / SAMPLES / f"round-{rounds}"
            self.written = self.scoring.scorer.write(clips.video[:number], clips.audio[:number], self.rows[:number], folder)
        total = self._total({name: self.trainer.ranks.gathered(value.double()) for name, value in scores.values.items()}, progress)
        if progress.best_total is None or total > progress.best_total:
            progress.best_total, progress.best_round, progress.without_better = total, rounds, 0
            for name, value in self.best.items():
                local_shard(value).copy_(local_shard(trainer.policy.ema.weights[name]))
        else:
            progress.without_better += 1
        return {"aside_total": total, **{f"aside/{name}": value for name, value in found.items()}}

    def _total(self, values: Mapping[str, Tensor], progress: Progress) -> float:
        """Weighted sum of how far each reward's mean has moved since the first scoring, in its deviations there."""
        total = 0.0
        for name, route in self.config.rubric.routes().items():
            known = values[name][~values[name].isnan()]
            mean = float(known.mean()) if len(known) else math.nan
            if name not in progress.baseline:
                spread = float(known.std()) if len(known) > 1 else 0.0
                progress.baseline[name] = [mean, spread]
            before, spread = progress.baseline[name]
            moved = (mean - before) / max(spread, 1e-6)
            total += route.weight * moved if math.isfinite(moved) else 0.0
        return total

    def take_written(self) -> list[Path]:
        """Sample clips written since the last call, on rank 0."""
        written, self.written = self.written, []
        return written

    @torch.no_grad()
    def take_best(self) -> None:
        """The averaged weights become the best that were scored, where stopping early keeps them."""
        for name, value in self.best.items():
            local_shard(self.trainer.policy.ema.weights[name]).copy_(local_shard(value))
