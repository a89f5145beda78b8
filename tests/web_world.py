"""A generation service with a small random model in this process (no Ray), and the page over it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from generation_world import QUICK
from video_world import TOKEN

from experiments.generation_client import GenerationServer
from experiments.web.desk import PageDesk
from experiments.web.scores import PageScorer, checked_rewards, usual_rewards
from experiments.web.services import PageServices
from experiments.web.store import PageStore
from orchestration.generation_service.app import AppConfig, build_video_app
from orchestration.generation_service.limits import JobLimits
from orchestration.generation_service.making import BatchMaking, MadeBatch, MakeTask, ServedModel
from orchestration.generation_service.offer import Offer
from orchestration.service.access import digest_of
from orchestration.service.limits import Limits


class ThreadWorker:
    """Makes real clips in a thread; `hold` keeps batches waiting, so that a test can look at the queue."""

    def __init__(self, served: ServedModel) -> None:
        self.making, self.hold, self.dropped = BatchMaking(served), False, False

    async def ready(self) -> None:
        await asyncio.to_thread(self.making.load)

    async def make(self, tasks: Sequence[MakeTask]) -> MadeBatch:
        self.dropped = False
        while self.hold and not self.dropped:
            await asyncio.sleep(0.02)
        return (
            MadeBatch(outcome="dropped") if self.dropped else await asyncio.to_thread(self.making.make, tasks)
        )

    async def progress(self) -> float:
        return self.making.progress()

    async def drop(self) -> None:
        self.dropped = True
        self.making.drop()

    async def replace(self) -> None:
        raise AssertionError("a thread cannot be replaced")


@contextmanager
def served(app: Any, listener: socket.socket | None = None) -> Iterator[str]:
    """An ASGI application at a free port, until the end of the block."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def small_service(made: Path, folder: Path, name: str = "small") -> Iterator[tuple[str, ThreadWorker]]:
    """(url, its worker) over `made`, of video_model.random_model, with its adapter `look`."""
    config = QUICK
    model = ServedModel(
        model=made / "model", codec=made / "codec", config=config, adapters={"look": made / "adapter"}
    )
    worker = ThreadWorker(model)
    offer = Offer(name=name, config=config, adapters=("look",), limits=JobLimits(seconds_of_clip=4))
    app = build_video_app(
        AppConfig(offer=offer, folder=folder, limits=Limits(), batch=4), digest_of(TOKEN), lambda: [worker]
    )
    with served(app) as url:
        yield url, worker


def desk_of(folder: Path, rewards: Sequence[str] = (), **urls: str) -> PageDesk:
    """The desk of a page over services by name."""
    servers = {
        name.rstrip("_"): GenerationServer(url, TOKEN, timeout_s=20, num_tries=2, backoff_s=0.1)
        for name, url in urls.items()
    }
    options = checked_rewards(rewards or usual_rewards(folder), (), folder)
    return PageDesk(PageServices(servers), PageStore(folder / "web"), PageScorer(options))
