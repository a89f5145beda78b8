"""The generation service on Ray Serve, on the loopback behind its front."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from ray.serve.schema import LoggingConfig

from orchestration.generation_service.app import (
    OPERATOR,
    AppConfig,
    build_video_app,
    check_waiting,
    wait_until_free,
)
from orchestration.generation_service.making import ServedModel
from orchestration.generation_service.worker import RayMakingWorker
from orchestration.service.access import digest_of
from orchestration.service.front.config import FrontConfig
from orchestration.service.hosting import LOOPBACK, WhichRay, hosted

APP = "nava_videos"
ASK_SECONDS, PATIENCE_S = 10.0, 60.0


@dataclass(frozen=True, kw_only=True)
class GenerationServiceConfig:
    """app: what is offered and where jobs lie; workers: processes with the model, each with `cpus` and
    `gpus` of Ray, `threads` of torch (0 = its share of the cores) and a lower priority by `niceness`."""

    app: AppConfig
    served: ServedModel
    token_digest: bytes
    workers: int = 1
    cpus: float = 0.0
    gpus: float = 0.0
    threads: int = 0
    niceness: int = 5
    tokens: Path | None = None  # file of named tokens
    audit: Path | None = None  # file that gets a line per request
    insecure_ray: bool = False
    fail_waiting: bool = (
        False  # jobs that wait for another model fail; without, they are a reason not to start
    )


@dataclass(frozen=True)
class Operator:
    """What the process that started the service can ask of it."""

    port: int
    token: str

    def state(self) -> dict[str, Any]:
        """wrong, cannot_load: "" where all is well; jobs: counts by status. Raises OSError."""
        return self._ask("GET", ASK_SECONDS)

    def drain(self, seconds: float) -> dict[str, Any]:
        """Ends the making of clips; drained: whether what ran has ended. Raises OSError."""
        return self._ask("POST", seconds + ASK_SECONDS)

    def _ask(self, method: str, seconds: float) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.token}"}
        try:
            with httpx.Client(trust_env=False, timeout=seconds) as client:
                answer = client.request(method, f"http://{LOOPBACK}:{self.port}{OPERATOR}", headers=headers)
                return json.loads(answer.raise_for_status().content)
        except (httpx.HTTPError, ValueError) as error:
            raise OSError(f"the service does not answer ({type(error).__name__}); see Ray's logs") from None


def video_application(config: GenerationServiceConfig, front_digest: bytes) -> serve.Application:
    """What `serve.run` takes, as `APP`. One replica: the store has one writer."""

    def make_workers() -> list[RayMakingWorker]:
        options: dict[str, Any] = {"cpus": config.cpus, "gpus": config.gpus}
        options |= {"niceness": config.niceness, "threads": config.threads or _share(config.workers)}
        return [RayMakingWorker(config.served, **options) for _ in range(config.workers)]

    def build():
        return build_video_app(config.app, front_digest, make_workers)

    web = serve.deployment(serve.ingress(build)()).options(
        name="videos",
        num_replicas=1,
        max_ongoing_requests=2 * config.app.limits.requests + 64,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False),
        graceful_shutdown_timeout_s=5.0,
        health_check_timeout_s=60.0,
    )
    return web.bind()


def _share(workers: int) -> int:
    """Cores of this machine for each worker."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


@contextmanager
def running_videos(
    config: GenerationServiceConfig, host: str, port: int, which: WhichRay
) -> Iterator[Operator]:
    """Context manager: the service at host:port, a worker's model loaded.

    Raises ValueError or OSError in one line: the port is taken, no Ray there or one without a token, a model
    that cannot be loaded, jobs that wait for another one.
    """
    wait_until_free(config.app.folder)
    if not config.fail_waiting:
        check_waiting(config.app)
    token = secrets.token_urlsafe(32)
    front = FrontConfig(
        backend_port=0,
        backend_token=token,
        default_digest=config.token_digest.hex(),
        tokens=str(config.tokens.resolve()) if config.tokens else "",
        audit=str(config.audit.resolve()) if config.audit else "",
        limits=config.app.limits,
        errors="openai",
    )
    which = dataclasses.replace(which, insecure=config.insecure_ray)

    def application() -> serve.Application:
        return video_application(config, digest_of(token))

    def load(backend_port: int) -> None:
        _wait_until_loaded(Operator(backend_port, token))

    with hosted(APP, application, front, host, port, which, load) as backend_port:
        yield Operator(backend_port, token)


def _wait_until_loaded(operator: Operator) -> None:
    """Raises ValueError where no worker can load the model."""
    began = said = answered = time.monotonic()
    while True:
        try:
            state = operator.state()
        except OSError:  # Serve's proxy learns of the application a moment after it is there
            if time.monotonic() - answered > PATIENCE_S:
                raise
            time.sleep(0.5)
            continue
        answered = time.monotonic()
        if state["cannot_load"]:
            raise ValueError(state["cannot_load"])
        if not state["wrong"]:
            return
        if time.monotonic() - said > 15.0:
            said = time.monotonic()
            print(f"loading the model, {said - began:.0f} s so far ({state['wrong']})", flush=True)
        time.sleep(0.5)
