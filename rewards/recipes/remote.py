"""Rewards of a service (`nava serve rewards`): one entry that may be rewarded, one that only measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rewards.base import Reward
from rewards.patience import PATIENCE_S
from rewards.recipes.base import SPEED_ONLY, Shared


@dataclass(frozen=True)
class RemoteOptions:
    """Which reward of which service.

    `token_file` holds the bearer token, else it is $NAVA_API_TOKEN. `turned`: values are negated.
    `patience_s`: how long a service that has answered before is asked again while it is away.
    """

    reward: str = ""
    url: str = ""
    token_file: Path | None = field(default=None, metadata=SPEED_ONLY)
    turned: bool = False
    timeout_s: float = field(default=330.0, metadata=SPEED_ONLY)
    num_tries: int = field(default=4, metadata=SPEED_ONLY)
    concurrency: int = field(default=8, metadata=SPEED_ONLY)
    patience_s: float = field(default=PATIENCE_S, metadata=SPEED_ONLY)


def remote(options: RemoteOptions, shared: Shared) -> Reward:
    return _remote(options, "remote", measure_only=False)


def remote_judge(options: RemoteOptions, shared: Shared) -> Reward:
    return _remote(options, "remote_judge", measure_only=True)


def _remote(options: RemoteOptions, name: str, measure_only: bool) -> Reward:
    from rewards.remote import RemoteReward

    if not options.reward or not options.url:
        raise ValueError(
            f"{name}: set {name}.url=http://HOST:PORT and {name}.reward=NAME, one of those served there"
        )
    return RemoteReward(
        options.reward,
        options.url,
        options.token_file,
        name,
        options.timeout_s,
        options.num_tries,
        concurrency=options.concurrency,
        turned=options.turned,
        measure_only=measure_only,
        patience_s=options.patience_s,
    )
