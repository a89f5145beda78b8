"""Optimizer steps of any objective on FSDP2 ranks: accumulation, global divisors, clipping, AdamW, EMA.

A round is split into optimizer steps by group, not by rank: a step uses an equal part of every group, so that
the steps do not depend on the number of ranks and all ranks run the same number of forward passes.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from finetune.objectives.base import Objective
from finetune.policy import LoraPolicy
from finetune.recipe import AlignConfig
from finetune.types import Advantage, Key, LearningBatch, take
from pretrain.titan.ema import local_shard
from pretrain.titan.moments import ShardedAdamW8bit
from pretrain.titan.ranks import Ranks
from pretrain.titan.train_spec import create_moments


class Trainer:
    """Owns the optimizer of `default`."""

    def __init__(self, policy: LoraPolicy, ranks: Ranks, config: AlignConfig) -> None:
        self.policy, self.ranks, self.config = policy, ranks, config
        # the ranks of a context group hold the same clips, which count once
        self.groups = ranks.in_groups(config.parallel.context)
        made = ShardedAdamW8bit if config.moments == "8bit" else torch.optim.AdamW
        self.optimizer = made(policy.parameters, lr=1.0, betas=(0.9, 0.999), weight_decay=config.weight_decay)
        create_moments(self.optimizer)
        self.skipped = self.skipped_in_a_row = 0

    def begin_phase(self, lr: float) -> None:
        """Reset the moments, which stem from another objective's gradients, and set the learning rate."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.set_rate(lr)

    def set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def learn(self, objective: Objective[Any], batch: LearningBatch, key: Key) -> dict[str, float]:
        """All optimizer steps of a round on this rank's rows; returns metrics of the last epoch over all
        ranks.
        """
        sums: dict[str, Tensor] = {}
        norms: list[float] = []
        for epoch in range(objective.phase.epochs):
            sums = {}
            for rows in objective.step_rows(batch, (*key, epoch)):
                part = take(batch, self._worth(batch, rows))
                part = part.after_update() if norms else part
                self._step(objective, part, (*key, epoch), sums, norms)
        found = {
            f"{objective.name}/{metric}": float(total / count)
            for metric, (total, count) in sums.items()
            if count
        }
        norm = max(norms, default=0.0)
        return {
            **found,
            "grad_norm": norm,
            "optimizer_steps": float(len(norms)),
            "skipped_nonfinite": float(self.skipped),
        }

    def _worth(self, batch: LearningBatch, rows: Tensor) -> Tensor:
        """Valid rows first, cut to the maximum number of valid rows of any rank.

        The others would cost compute without gradient; equal counts keep collectives in step.
        """
        valid = batch.valid[rows]
        most = int(self.groups.gathered(valid.sum()[None]).max())
        return torch.cat([rows[valid], rows[~valid]])[:most]

    def _step(
        self,
        objective: Objective[Any],
        batch: LearningBatch,
        key: Key,
        sums: dict[str, Tensor],
        norms: list[float],
    ) -> None:
        """One optimizer step; adds to `sums` and `norms`."""
        rows = torch.arange(len(batch.valid)).split(objective.phase.micro_batch)
        parts = [take(batch, some) for some in rows if len(some)]
        count = self.groups.summed(
            sum((objective.count(part).cpu() for part in parts), torch.zeros((), dtype=torch.float64))
        )
        if not count:
            return
        self.optimizer.zero_grad(set_to_none=True)
        metrics: list[dict[str, Tensor]] = []
        for index, part in enumerate(parts):
            if isinstance(self.policy.model, FSDPModule):
                self.policy.model.set_requires_gradient_sync(index == len(parts) - 1)
            answer = objective.loss(self.policy, part.to(self.ranks.device), key)
            (answer.loss / float(count)).backward()
            metrics.append(answer.metrics)
        names = list(metrics[0])
        # added up on the device: one look at it for all of them
        stacked = sum(torch.stack([found[name] for name in names]) for found in metrics)
        assert isinstance(stacked, Tensor)
        for name, value in zip(names, self.groups.summed(stacked), strict=True):
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + value
        norms.append(self._apply())

    def _apply(self) -> float:
        """Clip and step; skip a non-finite gradient, and raise ValueError after too many in a row."""
        gradients = [parameter.grad for parameter in self.policy.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        # the global norm is equal on all ranks, so all of them take or skip the step together
        if math.isfinite(norm):
            self.skipped_in_a_row = 0
            scale = min(1.0, self.config.grad_clip / (norm + 1e-6))
            # on local shards, because the norm is global already; DTensor dispatch would only add overhead
            torch._foreach_mul_([local_shard(gradient) for gradient in gradients], scale)  # pyright: ignore[reportPrivateImportUsage]
            self.optimizer.step()
            self.policy.update_ema()
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        # FSDP may still hold the unsharded weights of the last forward pass
        self.policy.weights_changed()
        if self.skipped_in_a_row >= self.config.max_skips:
            raise ValueError(
                f"{self.skipped_in_a_row} steps in a row had a gradient of norm {norm}; lower the phase's lr"
            )
        return norm

    def moments(self) -> dict[str, Any]:
        """Optimizer state by parameter, in model order; DTensors if sharded."""
        names = self.policy.adapters["default"]
        return {name: self.optimizer.state[cast(Tensor, parameter)] for name, parameter in names.items()}


def rows_of_rank(whole: Advantage, rank: int, rows: int) -> Advantage:
    """This rank's rows of a global Advantage."""
    return take(whole, torch.arange(rank * rows, (rank + 1) * rows))
