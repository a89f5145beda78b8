"""The alignment of one run on one rank: phases of rounds over the one policy, scoring of prompts set aside, checkpoints, stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import checkpoint
from finetune.advantage import advantages
from finetune.align_run import AlignRun
from finetune.aside import Aside
from finetune.checkpoint import Progress
from finetune.objectives.rwr import group_weights
from finetune.pair_batches import PairSource
from finetune.prompts import PromptSet, prompts_of_round, share
from finetune.recipe import GrpoPhase, GsbDpoPhase, NftPhase, Phase, RwrPhase
from finetune.rollout import ask, roll_out
from finetune.round import Parts, play
from finetune.scores import Scores
from finetune.scoring import RankScoring, Stopped
from finetune.trainer import Trainer, gathered_values, rows_of_rank
from finetune.types import Batch, Rollout, Scored
from pretrain.codecs.base import Codecs
from pretrain.prompt import PromptRow

Log = Callable[[dict[str, Any], int], None]
RolledOut = tuple[Rollout, list[PromptRow]]  # a row of the prompts for each clip
Said = tuple[Scores, dict[str, float]]  # of this rank's clips; means of all ranks


class Alignment:
    """`run_rounds` goes on from what `resume` found."""

    def __init__(
        self, run: AlignRun, trainer: Trainer, codecs: Codecs, prompts: PromptSet, voices: Mapping[Path, Tensor], scoring: RankScoring,
        log: Log, pairs: PairSource | None = None,
    ) -> None:  # fmt: skip
        self.run, self.config, self.trainer, self.ranks = run, run.config, trainer, trainer.ranks
        self.policy, self.codecs, self.prompts, self.voices = trainer.policy, codecs, prompts, voices
        self.scoring, self.log, self.pairs = scoring, log, pairs
        self.aside = Aside(run, trainer, codecs, prompts.aside, voices, scoring)
        self.progress = Progress()
        self.learning = False

    @property
    def finished(self) -> bool:
        return self.progress.phase >= len(self.config.phases)

    def resume(self) -> int:
        """Take up the newest checkpoint; returns the rounds done."""
        self.progress = checkpoint.load(self.run.out, self.trainer, self.aside.best)
        if 0 <= self.progress.phase < len(self.config.phases):
            self.trainer.set_rate(self.config.phases[self.progress.phase][1])
        return self.progress.rounds

    def run_rounds(self) -> str:
        """`finished` or `interrupted`. Raises ValueError naming a reward that failed; the round is lost, the one before is saved."""
        try:
            if not self.progress.rounds and not self.progress.baseline:
                self.log(self.aside.score(self.progress, 0), 0)
            while not self.finished:
                if self.progress.phase < 0 or self._phase_is_over():
                    self._begin_next_phase()
                else:
                    self._play_one()
        except Stopped:
            self._save()
            return "interrupted"
        except ValueError as error:
            if not self.learning:
                self._save()
            kept = checkpoint.newest(self.run.out)
            raise ValueError(f"round {self.progress.rounds + 1} is lost, the saved state is that of round {kept}: {error}") from error
        self._save()
        return "finished"

    def _play_one(self) -> None:
        progress = self.progress
        name, phase = self.config.phases[progress.phase]
        play(progress.rounds, self._parts(name, phase))
        self.learning = False
        progress.rounds += 1
        progress.phase_rounds += 1
        if progress.rounds % self.config.checkpoint_every == 0:
            self._save()

    def _begin_next_phase(self) -> None:
        progress = self.progress
        progress.phase += 1
        progress.phase_rounds = progress.old_updates = progress.without_better = 0
        if not self.finished:
            self.policy.update_old(0.0)
            self.trainer.begin_phase(self.config.phases[progress.phase][1])

    def _phase_is_over(self) -> bool:
        patience = self.config.stop.patience
        stale = bool(patience) and self.progress.without_better >= patience
        return stale or self.progress.phase_rounds >= self.config.phases[self.progress.phase][1].rounds

    def _parts(self, name: str, phase: Phase) -> Parts[Any, Any, Batch]:
        def log(row: dict[str, Any], step: int) -> None:
            self.log({"task": name, **row}, step)

        if isinstance(phase, GsbDpoPhase):
            return Parts(
                roll_out=lambda index: self._pairs_of(phase, index),
                score=lambda pairs: None,
                judge=lambda pairs, said: (pairs, {"pairs": float(phase.pairs_per_round)}),
                learn=lambda batch, index: self._learn(name, phase, batch, index),
                publish=lambda index: self._publish(phase, index),
                log=log,
            )
        return Parts(
            roll_out=lambda index: self._roll_out(phase, index),
            score=lambda made: self.scoring.score(made[0].video, made[0].audio, made[1]),
            judge=lambda made, said: self._judge(phase, made, said),
            learn=lambda batch, index: self._learn(name, phase, batch, index),
            publish=lambda index: self._publish(phase, index),
            log=log,
        )

    def _roll_out(self, phase: Phase, index: int) -> RolledOut:
        self.scoring.agree()
        rows = share(prompts_of_round(self.prompts, self.config, phase.prompts_per_round, index), self.ranks.rank, self.ranks.world_size)
        asked = ask(rows, phase.clips_per_prompt, self.codecs, self.voices, self.config)
        stochastic = phase if isinstance(phase, GrpoPhase) else None
        clips = roll_out(
            self.policy, phase.rolls_out_with, asked, phase.sampler, phase.rollout_batch, (self.config.seed, index), self.ranks.device,
            stochastic,
        )  # fmt: skip
        return clips, [row for row in rows for _ in range(phase.clips_per_prompt)]

    def _pairs_of(self, phase: GsbDpoPhase, index: int) -> Batch:
        assert self.pairs is not None
        self.scoring.agree()
        return self.pairs.of_round(phase, self.config.seed, index, self.ranks.rank, self.ranks.world_size)

    def _judge(self, phase: Phase, made: RolledOut, said: Said) -> tuple[Batch, Mapping[str, Any]]:
        """Advantages over all ranks' clips; this rank's rows of them. Raises ValueError after rounds without any contrast."""
        (clips, _), (scores, found), progress = made, said, self.progress
        routes = self.config.rubric.routes()
        groups, values = gathered_values(self.ranks, clips.groups, [scores.values[name] for name in routes])
        whole = advantages(dict(zip(routes, values, strict=True)), groups, routes, self.config.rubric.advantage)
        flat = progress.flat_rounds + 1 if whole.contrast == 0 else 0
        if flat >= self.config.max_flat_rounds:
            why = ", ".join(_spread(name, value, scores) for name, value in zip(routes, values, strict=True))
            raise ValueError(f"no reward told the clips of any prompt apart for {flat} rounds ({why}); check the rubric and the clips")
        progress.flat_rounds = flat
        if isinstance(phase, RwrPhase):
            whole = group_weights(whole, groups, phase.objective)
        batch = Scored(clips, rows_of_rank(whole, self.ranks.rank, len(clips.groups)))
        return batch, {**found, "contrast": whole.contrast, "skipped_groups": float(whole.skipped), "clips": float(len(groups))}

    def _learn(self, name: str, phase: Phase, batch: Batch, index: int) -> Mapping[str, float]:
        self.learning = True
        objective = phase.objective  # type: ignore[attr-defined]
        if isinstance(phase, GsbDpoPhase) and phase.tie_shares_from_pairs and self.pairs is not None:
            objective = replace(phase.objective, tie_shares=self.pairs.shares)
        if self.progress.flat_rounds:
            return {}
        return self.trainer.learn(name, phase, batch, objective, (self.config.seed, index))

    def _publish(self, phase: Phase, index: int) -> Mapping[str, float]:
        """`old` follows, and the prompts set aside are scored when that is due."""
        progress, found = self.progress, {}
        if isinstance(phase, NftPhase):
            found["old_decay"] = phase.old.decay(progress.old_updates)
            self.policy.update_old(found["old_decay"])
            progress.old_updates += 1
        if (index + 1) % self.config.stop.every == 0 or progress.phase_rounds + 1 == phase.rounds:
            found |= self.aside.score(progress, index + 1)
        return found

    def _save(self) -> None:
        checkpoint.save(self.run.out, self.trainer, self.progress, self.aside.best, self.config.keep_last)


def _spread(name: str, values: Tensor, scores: Scores) -> str:
    known = values[~values.isnan()]
    if not len(known):
        return f"{name}: all NaN, {scores.reasons.get(name, 'no reason given')}"
    return f"{name}: all from {float(known.min()):.4g} to {float(known.max()):.4g}"
