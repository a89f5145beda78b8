"""A generation service in this process: no Ray, no model, workers that misbehave on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from orchestration.generation_service.app import AppConfig, build_video_app
from orchestration.generation_service.limits import JobLimits
from orchestration.generation_service.making import MadeBatch, MadeFiles, MakeTask
from orchestration.generation_service.offer import Offer, Wanted
from orchestration.generation_service.worker import WorkerLost
from orchestration.service.access import digest_of
from orchestration.service.limits import Limits
from pretrain.generation.config import GenerateConfig

TOKEN = "a-token-of-the-tests-0123456789"
CONFIG = GenerateConfig(num_frames=25, height=64, width=64, batch_size=4)
SMALL = Limits(
    body_bytes=2 << 20,
    json_bytes=50_000,
    body_seconds=1.0,
    decoded_bytes=32 << 20,
    held_bytes=64 << 20,
    decoders=1,
    decode_seconds=5.0,
)


class FakeWorker:
    """A clip's file is its prompt. Prompts decide: `die` loses the worker, `refuse` and `bad` have reasons,
    `hold` waits until `go` or until it is dropped, `full` finds no room once."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go, self.dropped, self.replaced, self.share = False, False, 0, 0.0
        self.was_full = False
        self.unready = ""

    async def ready(self) -> None:
        if self.unready:
            raise ValueError(self.unready)

    async def make(self, tasks: Sequence[MakeTask]) -> MadeBatch:
        prompts = [Wanted.from_json(task.wanted).row["prompt"] for task in tasks]
        self.batches.append(prompts)
        self.dropped, self.share = False, 0.5
        while any("hold" in prompt for prompt in prompts) and not self.go:
            if self.dropped:
                return MadeBatch(outcome="dropped")
            await asyncio.sleep(0.01)
        if any("die" in prompt for prompt in prompts):
            raise WorkerLost("its process died")
        if any("refuse" in prompt for prompt in prompts):
            return MadeBatch(outcome="refused", reason="no room on the GPU")
        if any("full" in prompt for prompt in prompts) and not self.was_full:
            self.was_full = True
            return MadeBatch(outcome="disk", reason="no space left")
        return MadeBatch(outcome="made", clips=[self._made(task) for task in tasks])

    def _made(self, task: MakeTask) -> MadeFiles:
        wanted = Wanted.from_json(task.wanted)
        prompt = wanted.row["prompt"]
        if "bad" in prompt:
            return MadeFiles(name=task.name, reason="latents that are NaN")
        files = {}
        for variant, suffix in (("video", ".mp4"), ("audio", ".wav")):
            if not (wanted.row.get("task") == "T2A" and variant == "video"):
                files[variant] = task.files.with_suffix(suffix)
                files[variant].write_bytes(f"{variant} {prompt}".encode())
        return MadeFiles(name=task.name, files=files)

    async def progress(self) -> float:
        return self.share

    async def drop(self) -> None:
        self.dropped = True

    async def replace(self) -> None:
        self.replaced += 1


class VideoWorld:
    """A caller of the service under some token."""

    def __init__(self, client: TestClient, workers: list[FakeWorker], folder: Path) -> None:
        self.client, self.workers, self.folder = client, workers, folder

    def ask(self, method: str, path: str, owner: str = "team", **options: Any) -> Any:
        headers = {"x-nava-caller": f"{owner} 10.0.0.1", **options.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **options)

    def create(self, prompt: str = "A ball.", owner: str = "team", key: str = "", **fields: Any) -> Any:
        headers = {"idempotency-key": key} if key else {}
        return self.ask("POST", "/v1/videos", owner, json={"prompt": prompt, **fields}, headers=headers)

    def job(self, id: str, owner: str = "team") -> dict[str, Any]:
        return self.ask("GET", f"/v1/videos/{id}", owner).json()

    def until(self, id: str, *statuses: str, owner: str = "team") -> dict[str, Any]:
        """The job once it has one of these states. Fails after 20 s."""
        wait_until(lambda: self.job(id, owner)["status"] in statuses, f"{id} {statuses}")
        return self.job(id, owner)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.02)


def offer(**changes: Any) -> Offer:
    return Offer(name="mini", config=CONFIG, adapters=("look", "voice"), limits=JobLimits(**changes))


@contextmanager
def video_service(
    folder: Path, num_workers: int = 1, batch: int = 4, served: Offer | None = None, **limits: Any
) -> Iterator[VideoWorld]:
    workers = [FakeWorker() for _ in range(num_workers)]
    config = AppConfig(offer=served or offer(**limits), folder=folder, limits=SMALL, batch=batch)
    app = build_video_app(config, digest_of(TOKEN), lambda: workers)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield VideoWorld(client, workers, folder)
