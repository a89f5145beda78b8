"""What a checkpoint gives back of an optimizer and its schedule: moments and steps taken, and no settings.

torch's own states hold learning rates, betas, eps and weight decay too, and loading them would put those of
the interrupted training in the place of what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.distributed.checkpoint.stateful import Stateful
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchtitan.components.lr_scheduler import LRSchedulersContainer
from torchtitan.components.optimizer import OptimizersContainer

_SETTINGS = "param_groups."  # of keys by parameter; the others are "state."


class OptimizerMoments(Stateful):
    """Saves the optimizers' whole states and loads their moments, also into other parameter groups."""

    def __init__(self, optimizers: OptimizersContainer) -> None:
        self.optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        return self.optimizers.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.optimizers.state_dict()
        settings = {name: value for name, value in own.items() if name.startswith(_SETTINGS)}
        moments = {name: value for name, value in state_dict.items() if not name.startswith(_SETTINGS)}
        self.optimizers.load_state_dict({**moments, **settings})


class ScheduleSteps(Stateful):
    """Saves the schedules' whole states and loads the number of steps that they have taken."""

    def __init__(self, schedules: LRSchedulersContainer) -> None:
        self.schedules = schedules

    def state_dict(self) -> dict[str, Any]:
        return self.schedules.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for schedule in self.schedules:
            schedule.last_epoch = state_dict["last_epoch"]
            schedule._step_count = state_dict["_step_count"]


def set_rates(schedules: Iterable[LRScheduler]) -> None:
    """Give every parameter group the rate that its schedule has after the steps taken, by the arithmetic of
    LambdaLR's own step. Undefined past a schedule's last step."""
    for schedule in schedules:
        assert isinstance(schedule, LambdaLR)
        rates = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates
