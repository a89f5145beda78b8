"""The hands of a rank that does everything itself: rolls out its share of the prompts, scores it, learns from
it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.align_run import AlignRun
from finetune.hands import Said
from finetune.learner import Learner
from finetune.prompts import PromptSet, prompts_of_round, read_prompt_set, share
from finetune.recipe import GrpoPhase, GsbDpoPhase, Phase
from finetune.rollout import ask, roll_out
from finetune.scores import RankScoring, Scorer, Scores
from finetune.types import Advantage, PreferencePairs, Rollout
from pretrain.codecs.base import Codecs, check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.generate import reference_voices
from pretrain.prompt import PromptRow
from pretrain.titan.ranks import Ranks
from pretrain.tracking import build

SAMPLES = "samples"
RolledOut = tuple[Rollout, list[PromptRow]]  # a row of the prompts for each clip


class LocalHands:
    """finetune.hands.Hands on every rank alike; what is said is said by all of them together."""

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
        self.begin_phase, self.update_old, self.keep_best = (
            learner.begin_phase,
            learner.update_old,
            learner.keep_best,
        )
        self.aside = self._share(prompts.aside)
        self.asked_aside = ask(self.aside, 1, codecs, voices, self.config) if self.aside else None
        self.written: list[Path] = []

    def roll_out(self, name: str, phase: Phase, index: int, first: int) -> RolledOut | PreferencePairs:
        self.scoring.agree()
        if isinstance(phase, GsbDpoPhase):
            return self.learner.pairs_of(phase, index)
        rows = self._share(prompts_of_round(self.prompts, self.config, phase.prompts_per_round, index))
        asked = ask(rows, phase.clips_per_prompt, self.codecs, self.voices, self.config)
        stochastic = phase if isinstance(phase, GrpoPhase) else None
        clips = roll_out(
            self.learner.policy,
            phase.rolls_out_with,
            asked,
            phase.sampler,
            phase.rollout_batch,
            (self.config.seed, index),
            self.ranks.device,
            stochastic,
        )
        return clips, [row for row in rows for _ in range(phase.clips_per_prompt)]

    def score(self, clips: Any) -> Said:
        made, rows = clips
        return self._said(made, *self.scoring.score(made.video, made.audio, rows))

    def learn(
        self, name: str, phase: Phase, clips: Any, advantage: Advantage | None, index: int
    ) -> Mapping[str, float]:
        if advantage is None:
            assert isinstance(phase, GsbDpoPhase)
            return self.learner.learn_pairs(name, phase, clips, index)
        return self.learner.learn(name, phase, clips[0], advantage, index)

    def publish(self, phase: Phase, rounds: int) -> None:
        """The policy that rolls out is at hand."""

    def score_aside(self, rounds: int) -> Said | None:
        if self.asked_aside is None:
            return None
        policy, first = self.learner.policy, self.config.phases[0][1]
        with policy.averaged():
            clips = roll_out(
                policy,
                "default",
                self.asked_aside,
                first.sampler,
                first.rollout_batch,
                (self.config.seed, "aside"),
                self.ranks.device,
            )
        scores, means = self.scoring.score(clips.video, clips.audio, self.aside, stoppable=False)
        if self.ranks.rank == 0 and self.config.samples:
            number = min(self.config.samples, len(self.aside))
            folder = self.learner.run.out / SAMPLES / f"round-{rounds}"
            self.written = self.scoring.scorer.write(
                clips.video[:number], clips.audio[:number], self.aside[:number], folder
            )
        return self._said(clips, scores, means)

    def take_written(self) -> list[Path]:
        written, self.written = self.written, []
        return written

    def close(self) -> None:
        self.scoring.scorer.close()

    def _share(self, rows: list[PromptRow] | tuple[PromptRow, ...]) -> list[PromptRow]:
        return share(rows, self.ranks.rank, self.ranks.world_size)

    def _said(self, clips: Rollout, scores: Scores, means: Mapping[str, float]) -> Said:
        values = {
            name: self.ranks.gathered(scores.values[name].double()) for name in self.config.rubric.routes()
        }
        return Said(self.ranks.gathered(clips.groups), values, means, scores.reasons)


def build_hands(run: AlignRun, ranks: Ranks) -> LocalHands:
    """Everything a rank needs, from its files. Raises ValueError or FileNotFoundError in one line."""
    codecs = load_codecs(run.codec)
    prompts = read_prompt_set(run.prompts, run.config, run.chosen)
    voices = reference_voices(
        [row for some in (*prompts.train, prompts.aside) for row in some], run.prompts, codecs
    )
    learner = Learner(run, ranks, codecs)
    check_trained_on(codecs, run.codec, learner.described.facts, run.base)
    scorer: Scorer = build(run.scorer[0], run.scorer[1], "scorer")
    return LocalHands(learner, codecs, prompts, voices, RankScoring(scorer, ranks))
