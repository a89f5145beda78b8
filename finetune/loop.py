"""The alignment loop: phases of rounds, held-out scoring, checkpoints, early stopping.

An executor does the work; objectives define it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from finetune import checkpoint
from finetune.advantage import Floor, advantages
from finetune.align_run import AlignRun
from finetune.executor import Executor, RestoredFromCheckpoint, RoundScores, Stopped
from finetune.held_out import compare
from finetune.judges import alarms
from finetune.objectives.base import Objective
from finetune.progress import AlignProgress
from finetune.types import Advantage


class Alignment:
    """Runs the rounds of all phases from the restored progress.

    begin: called with the progress when rounds start or restart; log: called with each row and its step.
    """

    def __init__(
        self,
        run: AlignRun,
        executor: Executor,
        log: Callable[[dict[str, Any], int], None],
        begin: Callable[[AlignProgress], None] = lambda _: None,
    ) -> None:
        self.run, self.config, self.executor, self.log, self.begin = run, run.config, executor, log, begin
        self.objectives = run.config.objectives()
        self.progress = AlignProgress()
        self.learning = False

    @property
    def finished(self) -> bool:
        return self.progress.phase >= len(self.objectives)

    def resume(self) -> None:
        """Restore the newest checkpoint."""
        self.progress = self.executor.load()
        self.learning = False
        self.begin(self.progress)

    def run_rounds(self) -> str:
        """Returns `finished` or `interrupted`.

        Raises ValueError naming a reward that failed; that round is lost, the previous one is saved.
        """
        while True:
            try:
                return self._run_rounds()
            except RestoredFromCheckpoint:
                self.resume()

    def _run_rounds(self) -> str:
        try:
            if not self.progress.rounds and not self.progress.scored:
                self.log(self._score_held_out(0), 0)
            while not self.finished:
                if self.progress.phase < 0 or self._phase_is_over():
                    self._begin_next_phase()
                else:
                    self._run_round(self.objectives[self.progress.phase])
        except Stopped:
            self._save()
            return "interrupted"
        except ValueError as error:
            if not self.learning:
                self._save()
            kept = checkpoint.newest(self.run.out)
            raise ValueError(
                f"round {self.progress.rounds + 1} is lost, the saved state is that of round {kept}: {error}"
            ) from error
        self._save()
        return "finished"

    def _run_round(self, objective: Objective[Any]) -> None:
        progress, executor = self.progress, self.executor
        place, index = progress.phase, progress.rounds
        scores, seconds = executor.collect(place, index, index - progress.phase_rounds)
        with _timed(seconds, "advantage"):
            advantage, row = self._advantages(objective, scores)
        if (plan := objective.rollout()) and plan.sampler.cache.enabled:
            row["reused_steps"] = float(plan.sampler.reused_steps)
        self.learning = True
        with _timed(seconds, "update"):
            if not progress.flat_rounds:
                row |= executor.learn(place, index, advantage)
        with _timed(seconds, "publish"):
            row |= objective.after_round(progress.phase_rounds, executor)
            executor.publish(place, index + 1)
            last = progress.phase_rounds + 1 == objective.phase.rounds
            if last or (index + 1) % self.config.stop.every == 0:
                row |= self._score_held_out(index + 1)
        row |= {f"seconds/{part}": value for part, value in seconds.items()}
        self.log({"task": objective.name, **row, "seconds_per_step": sum(seconds.values())}, index + 1)
        self.learning = False
        progress.rounds += 1
        progress.phase_rounds += 1
        if progress.rounds % self.config.checkpoint_every == 0:
            self._save()

    def _begin_next_phase(self) -> None:
        progress = self.progress
        progress.phase += 1
        progress.phase_rounds = progress.without_better = progress.flat_rounds = 0
        if not self.finished:
            self.executor.begin_phase(progress.phase)

    def _phase_is_over(self) -> bool:
        patience = self.config.stop.patience
        stale = bool(patience) and self.progress.without_better >= patience
        return stale or self.progress.phase_rounds >= self.objectives[self.progress.phase].phase.rounds

    def _advantages(
        self, objective: Objective[Any], scores: RoundScores | None
    ) -> tuple[Advantage | None, dict[str, Any]]:
        """Learning targets of all clips, and metrics to log.

        Raises ValueError after too many rounds without contrast.
        """
        if scores is None:
            self.progress.flat_rounds = 0  # given batches always teach
            return None, dict(objective.given_facts())
        progress, routes = self.progress, self.config.rubric.routes()
        whole = advantages(
            {name: scores.values[name] for name in routes},
            scores.groups,
            routes,
            self.config.rubric.advantage,
        )
        flat = progress.flat_rounds + 1 if whole.contrast == 0 else 0
        if flat >= self.config.max_flat_rounds:
            why = ", ".join(
                _spread(name, scores.values[name], scores.reasons, route.floor)
                for name, route in routes.items()
            )
            raise ValueError(
                f"no reward told the clips of any prompt apart for {flat} rounds ({why}); check the rubric "
                "and the clips"
            )
        progress.flat_rounds = flat
        return objective.targets(whole, scores.groups), {
            **scores.means,
            "contrast": whole.contrast,
            "skipped_groups": float(whole.skipped),
            "clips": float(len(scores.groups)),
        }

    def _score_held_out(self, rounds: int) -> dict[str, float]:
        """Log `held_out/...` means and keep the weights if their total is the best so far.

        Weights with which a judge fell while the total rose are never the best; `alarm/JUDGE` is 1 there.
        Collective: all ranks call it. Raises ValueError as `compare`.
        """
        scores = self.executor.score_held_out(rounds)
        if scores is None:
            return {}
        progress, found = self.progress, compare(self.progress, scores, self.config.rubric)
        fallen = alarms(found.total, found.changes, found.coverage)
        if not fallen and (progress.best_total is None or found.total > progress.best_total):
            progress.best_total, progress.best_round, progress.without_better = found.total, rounds, 0
            self.executor.keep_best()
        else:
            progress.without_better += 1
        return {
            "held_out_total": found.total,
            **{f"held_out/{name}": mean for name, mean in scores.means.items()},
            **{f"held_out/lost/{name}": share for name, share in found.lost.items()},
            **({"held_out/by_means": 1.0} if progress.baseline else {}),
            **{f"held_out/judge_change/{name}": change.mean for name, change in found.changes.items()},
            **{f"held_out/judge_coverage/{name}": change.mean for name, change in found.coverage.items()},
            **{f"alarm/{name}": float(name in fallen) for name in found.coverage},
        }

    def _save(self) -> None:
        self.executor.save(self.progress)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - start


def _spread(name: str, values: Tensor, reasons: Mapping[str, str], floor: Floor | None) -> str:
    known = values[~values.isnan()]
    if not len(known):
        return f"{name}: all NaN, {reasons.get(name, 'no reason given')}"
    beyond = int((known < floor.floor).sum()) if floor else 0
    below = f", {beyond} of {len(known)} clips beyond the floor {floor.floor:g}" if floor and beyond else ""
    return f"{name}: all from {float(known.min()):.4g} to {float(known.max()):.4g}{below}"
