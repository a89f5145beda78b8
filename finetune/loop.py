"""The alignment of one run: phases of rounds over the one policy, prompts set aside, checkpoints, stopping.
Hands do the work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from finetune import checkpoint
from finetune.advantage import advantages
from finetune.align_run import AlignRun
from finetune.checkpoint import Progress
from finetune.hands import Hands, Said, Stopped, WentBack
from finetune.objectives.rwr import group_weights
from finetune.recipe import AlignConfig, GsbDpoPhase, NftPhase, Phase, RwrPhase
from finetune.types import Advantage

Judged = tuple[Any, Advantage | None]  # clips, or pairs that need no advantage


class Alignment:
    """`run_rounds` goes on from what `resume` found. begin: told of the progress when rounds begin, or begin
    again; log: of each row."""

    def __init__(
        self,
        run: AlignRun,
        hands: Hands,
        log: Callable[[dict[str, Any], int], None],
        begin: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.run, self.config, self.hands, self.log, self.begin = run, run.config, hands, log, begin
        self.progress = Progress()
        self.learning = False

    @property
    def finished(self) -> bool:
        return self.progress.phase >= len(self.config.phases)

    def resume(self) -> None:
        """Take up the newest checkpoint."""
        self.progress = self.hands.load()
        self.learning = False
        self.begin(self.progress)

    def run_rounds(self) -> str:
        """`finished` or `interrupted`. Raises ValueError naming a reward that failed; the round is lost, the
        one before is saved."""
        while True:
            try:
                return self._run_rounds()
            except WentBack:
                self.resume()

    def _run_rounds(self) -> str:
        try:
            if not self.progress.rounds and not self.progress.baseline:
                self.log(score_aside(self.hands, self.config, self.progress, 0), 0)
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
            raise ValueError(
                f"round {self.progress.rounds + 1} is lost, the saved state is that of round {kept}: {error}"
            ) from error
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
            self.hands.begin_phase(self.config.phases[progress.phase][1])

    def _phase_is_over(self) -> bool:
        patience = self.config.stop.patience
        stale = bool(patience) and self.progress.without_better >= patience
        return stale or self.progress.phase_rounds >= self.config.phases[self.progress.phase][1].rounds

    def _parts(self, name: str, phase: Phase) -> Parts[Any, Said | None, Judged]:
        given = isinstance(phase, GsbDpoPhase)  # pairs are judged already
        first = self.progress.rounds - self.progress.phase_rounds
        return Parts(
            roll_out=lambda index: self.hands.roll_out(name, phase, index, first),
            score=lambda clips: None if given else self.hands.score(clips),
            judge=lambda clips, said: self._judge(phase, clips, said),
            learn=lambda judged, index: self._learn(name, phase, judged, index),
            publish=lambda index: self._publish(phase, index),
            log=lambda row, step: self.log({"task": name, **row}, step),
        )

    def _judge(self, phase: Phase, clips: Any, said: Said | None) -> tuple[Judged, Mapping[str, Any]]:
        """Advantages over all clips. Raises ValueError after rounds without any contrast."""
        if said is None:
            assert isinstance(phase, GsbDpoPhase)
            return (clips, None), {"pairs": float(phase.pairs_per_round)}
        progress, routes = self.progress, self.config.rubric.routes()
        whole = advantages(
            {name: said.values[name] for name in routes}, said.groups, routes, self.config.rubric.advantage
        )
        flat = progress.flat_rounds + 1 if whole.contrast == 0 else 0
        if flat >= self.config.max_flat_rounds:
            why = ", ".join(_spread(name, said.values[name], said.reasons) for name in routes)
            raise ValueError(
                f"no reward told the clips of any prompt apart for {flat} rounds ({why}); check the rubric "
                "and the clips"
            )
        progress.flat_rounds = flat
        if isinstance(phase, RwrPhase):
            whole = group_weights(whole, said.groups, phase.objective)
        found = {
            "contrast": whole.contrast,
            "skipped_groups": float(whole.skipped),
            "clips": float(len(said.groups)),
        }
        return (clips, whole), {**said.means, **found}

    def _learn(self, name: str, phase: Phase, judged: Judged, index: int) -> Mapping[str, float]:
        self.learning = True
        return {} if self.progress.flat_rounds else self.hands.learn(name, phase, *judged, index)

    def _publish(self, phase: Phase, index: int) -> Mapping[str, float]:
        """`old` follows, what rolls out next is made known, and the prompts set aside are scored when that is
        due."""
        progress, found = self.progress, {}
        if isinstance(phase, NftPhase):
            found["old_decay"] = phase.old.decay(progress.old_updates)
            self.hands.update_old(found["old_decay"])
            progress.old_updates += 1
        self.hands.publish(phase, index + 1)
        if (index + 1) % self.config.stop.every == 0 or progress.phase_rounds + 1 == phase.rounds:
            found |= score_aside(self.hands, self.config, progress, index + 1)
        return found

    def _save(self) -> None:
        self.hands.save(self.progress)


def _spread(name: str, values: Tensor, reasons: Mapping[str, str]) -> str:
    known = values[~values.isnan()]
    if not len(known):
        return f"{name}: all NaN, {reasons.get(name, 'no reason given')}"
    return f"{name}: all from {float(known.min()):.4g} to {float(known.max()):.4g}"


Clips = TypeVar("Clips")
Answers = TypeVar("Answers")
Judged = TypeVar("Judged")
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Parts(Generic[Clips, Answers, Judged]):
    """The parts of a round. `judge` also answers what it wants logged."""

    roll_out: Callable[[int], Clips]
    score: Callable[[Clips], Answers]
    judge: Callable[[Clips, Answers], tuple[Judged, Metrics]]
    learn: Callable[[Judged, int], Metrics]
    publish: Callable[[int], Metrics]
    log: Callable[[dict[str, Any], int], None]


def play(index: int, parts: Parts[Clips, Answers, Judged]) -> dict[str, Any]:
    """Round `index` (from 0); logs and returns its row with the seconds of each part. Raises what a part
    raises."""
    seconds: dict[str, float] = {}

    def timed(name: str, part: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        answer = part(*arguments)
        seconds[f"seconds/{name}"] = time.perf_counter() - start
        return answer

    clips = timed("rollout", parts.roll_out, index)
    said = timed("score", parts.score, clips)
    judged, found = timed("advantage", parts.judge, clips, said)
    learned = timed("update", parts.learn, judged, index)
    published = timed("publish", parts.publish, index)
    row = {**found, **learned, **published, **seconds, "seconds_per_step": sum(seconds.values())}
    parts.log(row, index + 1)
    return row


def score_aside(hands: Hands, config: AlignConfig, progress: Progress, rounds: int) -> dict[str, float]:
    """`aside/...` means; takes note in `progress`, and has the weights kept, where the total is the best. All
    ranks call it."""
    said = hands.score_aside(rounds)
    if said is None:
        return {}
    total = _total(said.values, config, progress)
    if progress.best_total is None or total > progress.best_total:
        progress.best_total, progress.best_round, progress.without_better = total, rounds, 0
        hands.keep_best()
    else:
        progress.without_better += 1
    return {"aside_total": total, **{f"aside/{name}": value for name, value in said.means.items()}}


def _total(values: Mapping[str, Tensor], config: AlignConfig, progress: Progress) -> float:
    """Weighted sum of how far each reward's mean has moved since the first scoring, in its deviations
    there."""
    total = 0.0
    for name, route in config.rubric.routes().items():
        known = values[name][~values[name].isnan()]
        mean = float(known.mean()) if len(known) else math.nan
        if name not in progress.baseline:
            spread = float(known.std()) if len(known) > 1 else 0.0
            progress.baseline[name] = [mean, spread]
        before, spread = progress.baseline[name]
        moved = (mean - before) / max(spread, 1e-6)
        total += route.weight * moved if math.isfinite(moved) else 0.0
    return total
