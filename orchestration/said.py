"""The answers of all pools on the clips of a round, as one; and which workers were lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune.hands import Said
from finetune.recipe import AlignConfig
from finetune.scores import Scores, means, summed
from orchestration.round import Unit
from orchestration.tasks import ClipTask, Origin, Scored


class Answers:
    """Knows the processes that answered so far."""

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self._processes: dict[str, int] = {}  # worker -> its process
        self._restarts = 0

    def said(self, units: Sequence[Unit[ClipTask, Any]]) -> Said:
        """Of all clips in order. Raises ValueError where a pool scored other clips than the others did."""
        whole: list[Scores] = []
        groups: list[torch.Tensor] = []
        seconds = {"rollout": 0.0, "score": 0.0}
        for unit in units:
            answers: list[Scored] = list(unit.scores.values())
            first = answers[0]
            if any(not torch.equal(answer.sample_ids, first.sample_ids) for answer in answers) or first.version != unit.task.version:
                raise ValueError(f"task {unit.task.start} to {unit.task.end} of {unit.task.key}: its scores are of other clips")
            whole.append(_merged([answer.scores for answer in answers]))
            groups.append(first.groups)
            for kind, origins in (("rollout", [first.origins[0]]), ("score", [answer.origins[1] for answer in answers])):
                seconds[kind] += sum(origin.seconds for origin in origins)
                self._note(origins)
        names = self.config.rubric.routes()
        values = {name: torch.cat([scores.values[name].double() for scores in whole]) for name in names}
        reasons = {name: why for scores in reversed(whole) for name, why in scores.reasons.items()}
        work = {f"work_seconds/{kind}": value for kind, value in seconds.items()}
        return Said(torch.cat(groups), values, {**means([summed(scores) for scores in whole]), **work}, reasons)

    def restarts(self) -> int:
        """Workers that were replaced since the last call."""
        found, self._restarts = self._restarts, 0
        return found

    def _note(self, origins: Sequence[Origin]) -> None:
        for origin in origins:
            self._restarts += self._processes.get(origin.worker, origin.process) != origin.process
            self._processes[origin.worker] = origin.process


def _merged(parts: Sequence[Scores]) -> Scores:
    fields = ("values", "parts", "guardrails", "reasons")
    return Scores(*({key: value for part in parts for key, value in getattr(part, field).items()} for field in fields))
