"""The service on Ray Serve, on the loopback behind its front: one deployment for the web app, one per reward,
which batches requests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from orchestration.futures import short_line
from orchestration.service.access import digest_of
from orchestration.service.app import build_app
from orchestration.service.front.config import FrontConfig
from orchestration.service.holder import RayHolder
from orchestration.service.hosting import LOCAL, WhichRay, hosted
from orchestration.service.limits import MIB, Limits
from orchestration.service.schema import ServedReward
from orchestration.service.scoring import Died, RewardFailed, SharedClip, TryAgain, score_apart
from pretrain.progress import track
from rewards.catalog import CATALOG
from rewards.rubric import Rubric
from rewards.traits import lower_is_better, modality
from rewards.types import Clip, Score

APP = "nava_rewards"
HEALTH_SECONDS = 3.0
# of a decoded clip: it is not copied from process to process, and not scored in a batch
LARGE_BYTES = 4 * MIB


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Rewards with their options, the token's digest, permitted file roots, and limits."""

    rewards: tuple[str, ...]
    token_digest: bytes
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    roots: tuple[Path, ...] = ()  # real paths
    limits: Limits = field(default_factory=Limits)
    rubric: Rubric | None = None  # of `rewards`, for totals
    batch: int = 8  # maximum clips per batch
    batch_wait_s: float = 0.05  # wait for a batch to fill
    replicas: int = 1  # of each reward
    cpus: float = 0.0  # reserved for each replica of a reward
    gpus: float = 0.0
    tokens: Path | None = None  # file of named tokens
    audit: Path | None = None  # file that gets a line per request
    insecure_ray: bool = False  # a Ray without a token is taken


class RewardReplica:
    """One reward; concurrent requests are scored as a batch."""

    def __init__(self, name: str, config: ServiceConfig) -> None:
        self.name, self.seconds = name, config.limits.reward_seconds
        self.holder = RayHolder(name, config.options.get(name) or {}, config.cpus, config.gpus)
        self.score.set_max_batch_size(config.batch)  # type: ignore[attr-defined]
        self.score.set_batch_wait_timeout_s(config.batch_wait_s)  # type: ignore[attr-defined]
        self._turn = asyncio.Lock()  # a batch that waited behind a large clip would run out of its time

    @serve.batch
    async def score(self, clips: list[Clip]) -> list[Score | str]:
        async with self._turn:
            return await score_apart(clips, self.holder, self.seconds, self.name)

    async def score_large(self, clip: SharedClip) -> Score | str:
        """By itself, one at a time: small clips wait for one large one at most."""
        async with self._turn:
            return (await score_apart([clip], self.holder, self.seconds, self.name))[0]

    async def load(self) -> str:
        """ "" or why the reward cannot be loaded."""
        try:
            await self.holder.ready()
        except (RewardFailed, Died) as error:
            return short_line(error)
        return ""

    async def alive(self) -> bool:
        return True


class ServeScoring:
    """ScoringBackend over handles of `RewardReplica`."""

    def __init__(self, handles: Mapping[str, Any], wait_seconds: float) -> None:
        self.handles, self.wait_seconds = handles, wait_seconds
        self.served: Mapping[str, ServedReward] = {name: described(name) for name in handles}
        self._copying = ThreadPoolExecutor(1, thread_name_prefix="share", initializer=_nicer_thread)

    async def share(self, clip: Clip) -> Clip | SharedClip:
        """A thread copies: it takes long, and waits where the store is full."""
        if _bytes_of(clip) < LARGE_BYTES:
            return clip
        try:
            ref = await asyncio.get_running_loop().run_in_executor(self._copying, ray.put, clip)
        except RayError as error:
            raise RewardFailed(f"no room for the clip ({type(error).__name__}); try again", True) from None
        return SharedClip(clip.name, ref)

    async def score(self, reward: str, clip: Clip | SharedClip) -> Score:
        handle = self.handles[reward]
        method = handle.score_large if isinstance(clip, SharedClip) else handle.score
        try:
            result = await asyncio.wait_for(method.remote(clip), self.wait_seconds)
        except TimeoutError:
            raise RewardFailed(
                f"no answer after {self.wait_seconds:g} s, the queue included; try again", again=True
            ) from None
        except (RayError, RayServeException) as error:
            raise RewardFailed(f"its replica was lost ({type(error).__name__}); try again", True) from None
        if isinstance(result, str):
            raise RewardFailed(result, again=isinstance(result, TryAgain))
        return result

    async def health(self) -> str:
        pending = [
            asyncio.wait_for(handle.alive.remote(), HEALTH_SECONDS) for handle in self.handles.values()
        ]
        results = await asyncio.gather(*pending, return_exceptions=True)
        down = [name for name, result in zip(self.handles, results, strict=True) if result is not True]
        return f"{', '.join(down)}: no answer" if down else ""


def _nicer_thread() -> None:
    """Copies of hundreds of megabytes take their turn behind small clips."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + 10)


def _bytes_of(clip: Clip) -> int:
    return sum(value.nbytes for value in vars(clip).values() if isinstance(value, np.ndarray))


def described(name: str) -> ServedReward:
    """What a reward's catalog entry, or a plug-in's class, says of it."""
    entry = CATALOG.get(name)
    if entry is None:
        with contextlib.suppress(ValueError):  # cannot be imported, which loading it will tell
            lower, picture = lower_is_better(name), modality(name) != "audio"
            return ServedReward(name=name, lower_is_better=lower, picture=picture)
        return ServedReward(name=name)
    return ServedReward(
        name=name,
        lower_is_better=entry.lower_is_better,
        judge=entry.judge,
        picture=entry.picture,
        about=entry.about,
    )


def application(config: ServiceConfig) -> serve.Application:
    """What `serve.run` takes, as `APP`."""
    names = {name: _deployed(index, name) for index, name in enumerate(config.rewards)}
    limits, silent = config.limits, LoggingConfig(enable_access_log=False)

    def build():
        handles = {name: serve.get_deployment_handle(deployed, APP) for name, deployed in names.items()}
        return build_app(
            ServeScoring(handles, limits.wait_seconds),
            config.roots,
            limits,
            config.token_digest,
            config.rubric,
        )

    common = {
        "ray_actor_options": {"num_cpus": 0},
        "logging_config": silent,
        "graceful_shutdown_timeout_s": 5.0,
    }
    replica = serve.deployment(RewardReplica).options(
        num_replicas=config.replicas, max_ongoing_requests=limits.requests + config.batch, **common
    )
    rewards = [replica.options(name=deployed).bind(name, config) for name, deployed in names.items()]
    # More than `limits.requests` must reach the gate, which refuses them with a reason.
    web = serve.deployment(serve.ingress(build)()).options(
        name="web", max_ongoing_requests=2 * limits.requests + 64, **common
    )
    return web.bind(*rewards)


@contextmanager
def running(
    config: ServiceConfig, host: str, port: int, address: str = LOCAL, temporary: str | None = None
) -> Iterator[None]:
    """Context manager: the service at host:port, rewards loaded, on an embedded Ray or the one at `address`.

    Ray Serve listens on the loopback and takes only the front's token. Raises ValueError or OSError in one
    line: the port is taken, no Ray there or one without a token, a reward that cannot be loaded.
    """
    backend_token = secrets.token_urlsafe(32)
    behind = dataclasses.replace(config, token_digest=digest_of(backend_token))
    which = WhichRay(address=address, insecure=config.insecure_ray, temporary=temporary)
    front = _front(config, backend_token)
    with hosted(APP, lambda: application(behind), front, host, port, which, lambda _: _load(config)):
        yield


def _front(config: ServiceConfig, backend_token: str) -> FrontConfig:
    return FrontConfig(
        backend_port=0,
        backend_token=backend_token,
        default_digest=config.token_digest.hex(),
        tokens=str(config.tokens.resolve()) if config.tokens else "",
        audit=str(config.audit.resolve()) if config.audit else "",
        limits=config.limits,
    )


def _load(config: ServiceConfig) -> None:
    """All at once. Raises ValueError for the first reward that cannot be loaded."""
    pending = [
        serve.get_deployment_handle(_deployed(index, name), APP).load.remote()
        for index, name in enumerate(config.rewards)
    ]
    for name, result in zip(config.rewards, track(pending, len(pending), "rewards loaded"), strict=True):
        if error := result.result():
            raise ValueError(f"{name}: {error}")


def _deployed(index: int, name: str) -> str:
    """The name of a reward's deployment."""
    return f"reward_{index}_{''.join(letter if letter.isalnum() else '_' for letter in name)}"
