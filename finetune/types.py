"""Data types of alignment: rollouts, learning batches, advantages, losses.

Letters as in pretrain.types; T = trained steps of a trajectory. All clips of one batch have the same length.

An objective (finetune/objectives/*.py) counts and sums:

    count(batch) -> Tensor      scalar fp64: contribution of the batch to the divisor, before any forward pass
    loss(policy, batch, key) -> ObjectiveLoss

Losses are SUMS. The trainer divides by the count summed over all micro-batches and ranks of the optimizer
step, so that the result depends neither on the micro-batch size nor on the number of ranks. `key` = e.g.
(seed, round, epoch): sigmas and noise are drawn per clip from generator_for(*key, sample id, ...). A call
draws one sigma per clip; K sigmas need K calls with K keys. Advantages (and rwr's weights) are computed once
per round over all ranks, before the batch is split.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from finetune.gsb.votes import AXES
from finetune.sde import Kernel
from pretrain.sampling import LatentRates
from pretrain.types import Conditioning, Stream, Velocity, sent

Role = Literal["default", "old", "reference"]
Key = tuple[Hashable, ...]
T = TypeVar("T")

FIRST, TIE, SECOND, NO_LABEL = 1, 0, -1, 2  # of a preference pair


class Policy(Protocol):
    """The velocity field, used both for rollouts and for training. Only `default` has gradient."""

    def velocity(
        self, role: Role, video: Stream | None, audio: Stream | None, conditioning: Conditioning
    ) -> Velocity: ...


@dataclass(frozen=True)
class Trajectory:
    """The stored stochastic steps of rollouts, with their sigmas and kernel.

    Both modalities, because each velocity depends on both states. Raises ValueError for states that are not
    fp32 or fp64 and for a step to sigma 0, which has no density.
    """

    kernel: Kernel
    video: Tensor  # [B, T, 48, F, H, W] states before the step, fp32
    audio: Tensor  # [B, T, 128, L]
    next_video: Tensor  # [B, T, 48, F, H, W] states after it
    next_audio: Tensor  # [B, T, 128, L]
    levels: Tensor  # [B, T] fp64, falling along T; equal within a group; on the host, as next_levels
    next_levels: Tensor  # [B, T] fp64, > 0
    log_prob_video: Tensor  # [B, T] of the rolling-out policy
    log_prob_audio: Tensor  # [B, T]

    def __post_init__(self) -> None:
        for name in ("video", "audio", "next_video", "next_audio"):
            if (dtype := getattr(self, name).dtype) not in (torch.float32, torch.float64):
                raise ValueError(
                    f"trajectory.{name}: states are stored in fp32, got {dtype}; a rounded state has "
                    "another ratio"
                )
        # on the host, where a trajectory ends: a look at a GPU's would wait for it
        if self.next_levels.device.type == "cpu" and not bool((self.next_levels > 0).all()):
            raise ValueError(
                "trajectory: a step to level 0 is deterministic and cannot be trained; train earlier steps"
            )

    def to(self, device: torch.device) -> Self:
        """States and log-probabilities on this device; levels stay where they are."""
        on_host = ("kernel", "levels", "next_levels")
        names = [item.name for item in fields(self) if item.name not in on_host]
        return replace(self, **{name: sent(getattr(self, name), device) for name in names})


@dataclass(frozen=True)
class Rollout:
    """Generated clips; the K clips of a prompt are one group.

    Raises ValueError if rows disagree.
    """

    video: Tensor  # [B, 48, F, H, W] fp32, clean latents
    audio: Tensor  # [B, 128, L] fp32
    conditioning: Conditioning  # B rows
    groups: Tensor  # [B] int64, index of the prompt
    sample_ids: Tensor  # [B] int64, unique within a round: the key of every draw
    rates: LatentRates
    trajectory: Trajectory | None = None  # grpo
    # [B] bool: the first latent frame was given, so it is clean in every state and nothing learns from it.
    # None is taken for no clip
    first_frame: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.first_frame is None:
            none = torch.zeros(len(self.video), dtype=torch.bool, device=self.video.device)
            object.__setattr__(self, "first_frame", none)
        rows = [
            len(self.video),
            len(self.audio),
            len(self.conditioning.text),
            len(self.groups),
            len(self.sample_ids),
            len(self.first_frame),
        ]
        if len(set(rows)) > 1:
            raise ValueError(
                "rollout: video, audio, conditioning, groups, sample_ids and first_frame must have one row "
                f"per clip, got {rows}"
            )
        if self.groups.dtype != torch.int64 or self.sample_ids.dtype != torch.int64:
            raise ValueError(
                f"rollout: groups and sample_ids must be int64, got {self.groups.dtype} and "
                f"{self.sample_ids.dtype}"
            )

    @cached_property
    def given(self) -> Tensor | None:
        """`first_frame`, None if no clip has one."""
        return self.first_frame if bool(self.first_frame.any()) else None

    def to(self, device: torch.device) -> Self:
        """Copy of everything that a policy reads on this device; ids and levels stay where they are."""
        moved = {name: sent(getattr(self, name), device) for name in ("video", "audio", "first_frame")}
        steps = None if self.trajectory is None else self.trajectory.to(device)
        return self.changed(**moved, conditioning=self.conditioning.to(device), trajectory=steps)

    def changed(self, **parts: Any) -> Self:
        """A copy with other parts; whether a first frame was given is known of it without a look at a GPU."""
        other = replace(self, **parts)
        other.__dict__["given"] = None if self.given is None else other.first_frame
        return other


@dataclass(frozen=True)
class Advantage:
    """Advantage of each clip over its group, per modality.

    rwr reads weights here instead (rwr.group_weights).
    """

    video: Tensor  # [B] fp32, exactly 0 where not valid or without a reward for the picture
    audio: Tensor  # [B] fp32
    valid: Tensor  # [B] bool, False = unscored, or of a group without contrast: takes no part in the loss
    contrast: float  # share of groups with contrast
    skipped: int  # groups without contrast
    # some reward is routed to the picture; False leaves its term out (known, never guessed from zeros)
    has_video: bool = True
    has_audio: bool = True
    are_weights: bool = False  # rwr.group_weights made these

    @cached_property
    def one_for_both(self) -> bool:
        """Both modalities have a reward, and the same advantage."""
        return self.has_video and self.has_audio and torch.equal(self.video, self.audio)

    def to(self, device: torch.device) -> Self:
        moved = {name: sent(getattr(self, name), device) for name in ("video", "audio", "valid")}
        there = replace(self, **moved)
        there.__dict__["one_for_both"] = self.one_for_both  # known without a look at the device
        return there


class LearningBatch(Protocol):
    """Input of an objective: a frozen dataclass that `take` can slice by rows."""

    @property
    def valid(self) -> Tensor:
        """[B] bool: the rows that take part in the loss."""
        ...

    @property
    def sample_ids(self) -> Tensor: ...

    def to(self, device: torch.device) -> Self: ...

    def after_update(self) -> Self:
        """The batch after the weights have changed since its clips were generated."""
        ...


@dataclass(frozen=True)
class RolloutsWithAdvantage:
    """The policy's own clips with their advantages."""

    rollout: Rollout
    advantage: Advantage
    on_policy: bool = False  # no update since the rollout: grpo then asserts that the ratio is 1

    @property
    def valid(self) -> Tensor:
        return self.advantage.valid

    @property
    def sample_ids(self) -> Tensor:
        return self.rollout.sample_ids

    def to(self, device: torch.device) -> Self:
        return replace(self, rollout=self.rollout.to(device), advantage=self.advantage.to(device))

    def after_update(self) -> Self:
        return replace(self, on_policy=False)


@dataclass(frozen=True)
class PreferencePairs:
    """Batch of gsb_dpo: two clips of one prompt per row, with a label for each axis of votes.

    Labels: FIRST, SECOND, TIE, NO_LABEL = no vote. Raises ValueError for other labels or rows that disagree.
    """

    first: Rollout
    # same prompts in the same order; draws are keyed by the first clip's id, one noise for both
    second: Rollout
    labels: Tensor  # [B, A] int8 on the host, columns in the order of finetune.gsb.votes.AXES

    def __post_init__(self) -> None:
        wanted = (len(self.first.groups), len(AXES))
        known = torch.isin(self.labels, self.labels.new_tensor((FIRST, TIE, SECOND, NO_LABEL)))
        if self.labels.shape != wanted or not bool(known.all()):
            raise ValueError(
                f"labels: expected {wanted[0]} rows of {', '.join(AXES)}, each 1, 0, -1 or 2 (not asked), "
                f"got {self.labels.tolist()}"
            )
        if not torch.equal(self.first.groups, self.second.groups):
            raise ValueError(
                "preference pairs: first and second must be clips of the same prompts in the same order"
            )
        given = self.first.first_frame, self.second.first_frame
        if given[0].device.type == "cpu" and not torch.equal(*given):
            raise ValueError("preference pairs: only one clip of a pair has a given first frame")

    def of_axis(self, axis: str) -> Tensor:
        """[B] int8: the labels of one axis."""
        return self.labels[:, AXES.index(axis)]

    @property
    def valid(self) -> Tensor:
        """Of all pairs: those without a label are left out of sums by the objective's count."""
        return torch.ones_like(self.first.groups, dtype=torch.bool)

    @property
    def sample_ids(self) -> Tensor:
        return self.first.sample_ids

    def to(self, device: torch.device) -> Self:
        """Its clips there; labels stay where they are."""
        return replace(self, first=self.first.to(device), second=self.second.to(device))

    def after_update(self) -> Self:
        return self


@dataclass(frozen=True)
class ObjectiveLoss:
    """Loss of one micro-batch."""

    loss: Tensor  # scalar with gradient: SUM over what `count` counts
    # scalar fp64: clips, clip-steps or pairs; equals the objective's count(batch)
    count: Tensor
    # [2] fp64 each, (sum, how many): add over micro-batches and ranks, then divide; same names everywhere
    metrics: dict[str, Tensor]


def take(batch: T, rows: Tensor) -> T:
    """The batch restricted to rows [N] int64, in this order; for micro-batches and rank shards."""
    if not is_dataclass(batch) or isinstance(batch, type):
        raise TypeError(f"take: expected a batch, got {type(batch).__name__}")
    cut: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            cut[item.name] = value[rows.to(value.device)]
        elif isinstance(value, (Rollout, Trajectory, Advantage, Conditioning)):
            cut[item.name] = take(value, rows)
    return replace(batch, **cut)


def joined(parts: Sequence[T]) -> T:
    """Inverse of `take`: concatenates the rows of all parts; non-tensors are those of the first."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if not is_dataclass(first) or isinstance(first, type):
        raise TypeError(f"joined: expected batches, got {type(first).__name__}")
    whole: dict[str, Any] = {}
    for item in fields(first):
        values = [getattr(part, item.name) for part in parts]
        if isinstance(values[0], Tensor):
            whole[item.name] = torch.cat(values)
        elif isinstance(values[0], (Rollout, Trajectory, Advantage, Conditioning)):
            whole[item.name] = joined(values)
    return replace(first, **whole)
