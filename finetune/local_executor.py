"""Executor of a torchrun rank, which rolls out, scores and trains on its share of the prompts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.align_run import AlignRun
from finetune.executor import HELD_OUT_KEY, SAMPLES, RoundScores
from finetune.learner import Learner
from finetune.prompts import (
    PromptSet,
    any_voice,
    prompts_of_round,
    read_prompt_set,
    share,
    shares_by_kind,
    voices_of,
)
from finetune.rollout import PromptBatch, encode_prompts, roll_out
from finetune.scores import Batch, RankScoring, Scorer, Scores
from finetune.types import Advantage, Rollout, take
from pretrain.codecs.base import Codecs, check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.first_frames import read_first_frames
from pretrain.prompt import PromptRow
from pretrain.titan.ranks import GroupRanks, Ranks
from pretrain.tracking import build


class LocalExecutor:
    """finetune.executor.Executor for torchrun ranks; scores are gathered over all of them.

    The ranks of a context group roll the same clips out together, and each scores a part of them.
    """

    def __init__(
        self,
        learner: Learner,
        codecs: Codecs,
        prompts: PromptSet,
        voices: Mapping[Path, Tensor],
        images: Mapping[Path, Tensor],
        scoring: RankScoring,
    ) -> None:
        self.learner, self.config, self.ranks = learner, learner.config, learner.ranks
        self.codecs, self.prompts, self.scoring = codecs, prompts, scoring
        self.voices, self.images = voices, images
        self.load, self.save, self.export = learner.load, learner.save, learner.export
        self.begin_phase, self.keep_best = learner.begin_phase, learner.keep_best
        self.update_old = learner.policy.update_old
        self.groups = learner.trainer.groups
        place = self.groups.rank, self.groups.world_size
        self.held_out = shares_by_kind(prompts.held_out, self.config, *place)
        self.held_out_batches = [self._encoded(part.rows, 1, prompts.held_out) for part in self.held_out]
        self.clips: list[Rollout] = []
        self.written: list[Path] = []

    def collect(self, place: int, index: int, first: int) -> tuple[RoundScores | None, dict[str, float]]:
        start = time.perf_counter()
        self.scoring.agree()
        self.clips, plan = [], self.learner.objectives[place].rollout()
        if plan is None:
            return None, {"rollout": time.perf_counter() - start, "score": 0.0}
        drawn = prompts_of_round(self.prompts, self.config, plan.prompts, index)
        rows = share(drawn, self.groups.rank, self.groups.world_size)
        batch = self._encoded(rows, plan.clips_per_prompt, drawn)
        clips = roll_out(self.learner.policy, plan, batch, (self.config.seed, index), self.ranks.device)
        made = time.perf_counter()
        row_of_clip = [row for row in rows for _ in range(plan.clips_per_prompt)]
        self.clips, own = [clips], self._part(len(row_of_clip))
        batch_scores = [(clips.video[own], clips.audio[own], row_of_clip[own])] if row_of_clip[own] else []
        scores, means, reasons = self.scoring.score(batch_scores)
        return self._gathered(clips.groups[own], scores, means, reasons), {
            "rollout": made - start,
            "score": time.perf_counter() - made,
        }

    def learn(self, place: int, index: int, advantage: Advantage | None) -> Mapping[str, float]:
        return self.learner.learn(place, index, advantage, self.clips)[0]

    def publish(self, place: int, rounds: int) -> None:
        """Nothing to do: rollouts use the policy in place."""

    def score_held_out(self, rounds: int) -> RoundScores | None:
        if not self.held_out:
            return None
        policy, plan = self.learner.policy, self.config.held_out_plan()
        key = (self.config.seed, HELD_OUT_KEY)
        with policy.averaged():
            made = [roll_out(policy, plan, batch, key, self.ranks.device) for batch in self.held_out_batches]
        own = [take(clips, torch.arange(part.count)) for part, clips in zip(self.held_out, made, strict=True)]
        whole = [(clips.video, clips.audio, part.own) for part, clips in zip(self.held_out, own, strict=True)]
        parts = [self._part(len(rows)) for _, _, rows in whole]
        batches = [
            (video[part], audio[part], rows[part])
            for (video, audio, rows), part in zip(whole, parts, strict=True)
            if rows[part]
        ]
        scores, means, reasons = self.scoring.score(batches, held_out=True)
        if self.ranks.rank == 0:
            filled = [batch for batch in whole if batch[2]]
            self.written = self._write(filled, self.learner.run.out / SAMPLES / f"round-{rounds}")
        groups = torch.cat([clips.groups[part] for clips, part in zip(own, parts, strict=True)])
        return self._gathered(groups, scores, means, reasons, self.config.rubric.watched)

    def take_written(self) -> list[Path]:
        written, self.written = self.written, []
        return written

    def close(self) -> None:
        self.scoring.scorer.close()

    def _part(self, count: int) -> slice:
        """Which of a context group's `count` clips this rank scores: all of them where it is alone."""
        groups = self.groups
        if not isinstance(groups, GroupRanks):
            return slice(0, count)
        return slice(count * groups.place // groups.size, count * (groups.place + 1) // groups.size)

    def _encoded(self, rows: Sequence[PromptRow], clips: int, whole: Sequence[PromptRow]) -> PromptBatch:
        """Prompts of this rank, `clips` times each; `whole`: those of all ranks."""
        # the ranks of a sharded policy agree about the direction of the voices by the prompts of all of them
        voiced = any_voice(whole) if self.ranks.world_size > 1 else None
        return encode_prompts(rows, clips, self.codecs, self.voices, self.config, self.images, voiced)

    def _write(self, batches: Sequence[Batch], folder: Path) -> list[Path]:
        """Write the first `samples` clips."""
        written, left = [], self.config.samples
        for video, audio, rows in batches:
            if left > 0:
                written += self.scoring.scorer.write(video[:left], audio[:left], rows[:left], folder)
                left -= len(rows)
        return written

    def _gathered(
        self,
        groups: Tensor,
        scores: Sequence[Scores],
        means: Mapping[str, float],
        reasons: Mapping[str, str],
        judges: Sequence[str] = (),
    ) -> RoundScores:
        """Scores of all ranks' clips; groups [n] of this rank's, n may differ between ranks."""
        counts = self.ranks.gathered(torch.tensor([len(groups)])).tolist()

        def whole(values: Tensor) -> Tensor:
            padded = torch.cat([values, values.new_zeros(max(counts) - len(values))])
            parts = self.ranks.gathered(padded).split(max(counts))
            return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

        def column(parts: Iterable[Tensor]) -> Tensor:
            return whole(torch.cat([torch.zeros(0, dtype=torch.float64), *(part.double() for part in parts)]))

        return RoundScores(
            whole(groups),
            {name: column(some.values[name] for some in scores) for name in self.config.rubric.routes()},
            means,
            reasons,
            {name: column(some.judges[name] for some in scores) for name in judges},
        )


def build_executor(run: AlignRun, ranks: Ranks) -> LocalExecutor:
    """Everything a rank needs, from its files. Raises ValueError or FileNotFoundError in one line."""
    codecs = load_codecs(run.codec)
    prompts = read_prompt_set(run.prompts, run.config, run.chosen, run.held_out)
    voices, images = voices_of(prompts.rows(), codecs), read_first_frames(prompts.rows())
    learner = Learner(run, ranks, codecs)
    check_trained_on(codecs, run.codec, learner.described.facts, run.base)
    scorer: Scorer = build(run.scorer[0], run.scorer[1], "scorer")
    return LocalExecutor(learner, codecs, prompts, voices, images, RankScoring(scorer, ranks))
