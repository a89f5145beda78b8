"""Executor of a torchrun rank, which rolls out, scores and trains on its share of the prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from finetune.align_run import AlignRun
from finetune.executor import HELD_OUT_KEY, SAMPLES, RoundScores
from finetune.learner import Learner
from finetune.prompts import PromptSet, prompts_of_round, read_prompt_set, share
from finetune.rollout import encode_prompts, roll_out
from finetune.scores import RankScoring, Scorer, Scores
from finetune.types import Advantage, Rollout
from pretrain.codecs.base import Codecs, check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.generate import reference_voices
from pretrain.prompt import PromptRow
from pretrain.titan.ranks import Ranks
from pretrain.tracking import build


class LocalExecutor:
    """finetune.executor.Executor for torchrun ranks; scores are gathered over all of them."""

    def __init__(
        self,
        learner: Learner,
        codecs: Codecs,
        prompts: PromptSet,
        voices: Mapping[Path, Tensor],
        scoring: RankScoring,
    ) -> None:
        self.learner, self.config, self.ranks = learner, learner.config, learner.ranks
        self.codecs, self.prompts, self.voices, self.scoring = codecs, prompts, voices, scoring
        self.load, self.save, self.export = learner.load, learner.save, learner.export
        self.begin_phase, self.keep_best = learner.begin_phase, learner.keep_best
        self.update_old = learner.policy.update_old
        self.held_out = self._share(prompts.held_out)
        self.held_out_batch = (
            encode_prompts(self.held_out, 1, codecs, voices, self.config) if self.held_out else None
        )
        self.clips: list[Rollout] = []
        self.written: list[Path] = []

    def collect(self, place: int, index: int, first: int) -> tuple[RoundScores | None, dict[str, float]]:
        start = time.perf_counter()
        self.scoring.agree()
        self.clips, plan = [], self.learner.objectives[place].rollout()
        if plan is None:
            return None, {"rollout": time.perf_counter() - start, "score": 0.0}
        rows = self._share(prompts_of_round(self.prompts, self.config, plan.prompts, index))
        batch = encode_prompts(rows, plan.clips_per_prompt, self.codecs, self.voices, self.config)
        clips = roll_out(self.learner.policy, plan, batch, (self.config.seed, index), self.ranks.device)
        made = time.perf_counter()
        row_of_clip = [row for row in rows for _ in range(plan.clips_per_prompt)]
        scores, means = self.scoring.score(clips.video, clips.audio, row_of_clip)
        self.clips = [clips]
        return self._gathered(clips, scores, means), {
            "rollout": made - start,
            "score": time.perf_counter() - made,
        }

    def learn(self, place: int, index: int, advantage: Advantage | None) -> Mapping[str, float]:
        return self.learner.learn(place, index, advantage, self.clips)[0]

    def publish(self, place: int, rounds: int) -> None:
        """Nothing to do: rollouts use the policy in place."""

    def score_held_out(self, rounds: int) -> RoundScores | None:
        if self.held_out_batch is None:
            return None
        policy = self.learner.policy
        key = (self.config.seed, HELD_OUT_KEY)
        with policy.averaged():
            clips = roll_out(policy, self.config.held_out_plan(), self.held_out_batch, key, self.ranks.device)
        scores, means = self.scoring.score(clips.video, clips.audio, self.held_out, stoppable=False)
        if self.ranks.rank == 0 and self.config.samples:
            number = min(self.config.samples, len(self.held_out))
            folder = self.learner.run.out / SAMPLES / f"round-{rounds}"
            self.written = self.scoring.scorer.write(
                clips.video[:number], clips.audio[:number], self.held_out[:number], folder
            )
        return self._gathered(clips, scores, means)

    def take_written(self) -> list[Path]:
        written, self.written = self.written, []
        return written

    def close(self) -> None:
        self.scoring.scorer.close()

    def _share(self, rows: list[PromptRow] | tuple[PromptRow, ...]) -> list[PromptRow]:
        return share(rows, self.ranks.rank, self.ranks.world_size)

    def _gathered(self, clips: Rollout, scores: Scores, means: Mapping[str, float]) -> RoundScores:
        values = {
            name: self.ranks.gathered(scores.values[name].double()) for name in self.config.rubric.routes()
        }
        return RoundScores(self.ranks.gathered(clips.groups), values, means, scores.reasons)


def build_executor(run: AlignRun, ranks: Ranks) -> LocalExecutor:
    """Everything a rank needs, from its files. Raises ValueError or FileNotFoundError in one line."""
    codecs = load_codecs(run.codec)
    prompts = read_prompt_set(run.prompts, run.config, run.chosen, run.held_out)
    voices = reference_voices(
        [row for some in (*prompts.train, prompts.held_out) for row in some], run.prompts, codecs
    )
    learner = Learner(run, ranks, codecs)
    check_trained_on(codecs, run.codec, learner.described.facts, run.base)
    scorer: Scorer = build(run.scorer[0], run.scorer[1], "scorer")
    return LocalExecutor(learner, codecs, prompts, voices, RankScoring(scorer, ranks))
