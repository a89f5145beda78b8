"""The `ray` section of a recipe. Only `staleness` changes numbers of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrain.config import MEMBER, nearest


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Worker processes of one kind. Raises ValueError for numbers out of range."""

    workers: int = 2
    # per process, reserved and used as threads; 0 = an equal share (embedded Ray), 1 (cluster)
    num_cpus: float = 0.0
    num_gpus: float = 0.0  # of each; -1 = for ranks and rollouts, a share of what there is
    runtime_env: Mapping[str, Any] = field(default_factory=dict)  # Ray's own: pip, env_vars, ...
    in_flight: int = 1  # tasks with a worker at a time
    max_restarts: int = 5  # of a lost worker; its tasks are retried

    def __post_init__(self) -> None:
        if self.workers < 1 or self.in_flight < 1 or self.max_restarts < 0:
            raise ValueError(
                f"workers and in_flight must be at least 1 and max_restarts not negative, got {self}"
            )
        if self.num_cpus < 0 or (self.num_gpus < 0 and self.num_gpus != -1):
            raise ValueError(
                f"num_cpus must not be negative, num_gpus neither, but for -1, got {self.num_cpus} and "
                f"{self.num_gpus}"
            )


@dataclass(frozen=True, kw_only=True)
class RewardPool(Workers):
    """Workers that all score the same rewards; without names, all rewards that no other pool lists."""

    rewards: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Distribution of an alignment over Ray.

    `trainers.workers` is ignored: the number of trainer ranks is a parameter of the run.
    """

    # max_restarts: rebuilds of the whole group
    trainers: Workers = field(default_factory=lambda: Workers(num_gpus=-1, max_restarts=3))
    rollout: Workers = field(default_factory=lambda: Workers(num_gpus=-1))
    pools: Mapping[str, RewardPool] = field(
        default_factory=lambda: {"rewards": RewardPool()}, metadata={MEMBER: RewardPool}
    )
    # rounds by which rollout weights lag behind: 0 = on-policy; 1 = rollouts overlap the update
    staleness: int = 0
    max_unscored: int = 8  # maximum number of unscored clip batches before rollouts pause
    object_store_mb: int = 500  # of the embedded Ray

    def __post_init__(self) -> None:
        if self.staleness < 0 or self.max_unscored < 1:
            raise ValueError(
                f"staleness must be at least 0 and max_unscored 1, got {self.staleness} and "
                f"{self.max_unscored}"
            )
        if self.object_store_mb < 80:
            raise ValueError(
                f"object_store_mb must be at least 80, Ray's own least, got {self.object_store_mb}"
            )
        if not self.pools:
            raise ValueError("pools: no pool; name one, such as rewards")

    def rewards_of(self, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Rewards scored by each pool; a pool left without rewards is omitted.

        Raises ValueError where a reward is unknown, or in no pool or in two.
        """
        named = [name for pool in self.pools.values() for name in pool.rewards]
        for name in named:
            if name not in names:
                raise ValueError(f"ray.pools: reward {name!r} is not in the rubric; {nearest(name, names)}")
            if named.count(name) > 1:
                raise ValueError(f"ray.pools: reward {name!r} is in two pools; leave it in one")
        rest = tuple(name for name in names if name not in named)
        takers = [pool for pool, given in self.pools.items() if not given.rewards]
        if rest and len(takers) != 1:
            found = f"{len(takers)} pools without named rewards"
            raise ValueError(
                f"ray.pools: {found}, but {', '.join(rest)} must be scored by one; leave `rewards` empty in "
                "exactly one pool"
            )
        shares = {pool: given.rewards or rest for pool, given in self.pools.items()}
        return {pool: share for pool, share in shares.items() if share}
