"""Files are built, and read by FFmpeg, two at a time beside the tests that wait for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import Source, build
from ffmpeg_reading import Built, Reading, read_by_ffmpeg


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Path and FFmpeg's reading of a source; all that this session asks for are begun at once, in order."""
    folder = tmp_path_factory.mktemp("media")
    wanted: dict[str, Future[tuple[Path, Reading]]] = {}

    def work(source: Source) -> tuple[Path, Reading]:
        path = build(source, folder)
        has = {"video": source.video is not None, "audio": source.audio is not None}
        return path, read_by_ffmpeg(path, folder, **has)

    with ThreadPoolExecutor(2) as pool:

        def ask(source: Source) -> tuple[Path, Reading]:
            if source.name not in wanted:
                wanted[source.name] = pool.submit(work, source)
            return wanted[source.name].result()

        for item in request.session.items:
            call = getattr(item, "callspec", None)
            source = call.params.get("source") if call else None
            if isinstance(source, Source) and source.name not in wanted:
                wanted[source.name] = pool.submit(work, source)
        yield ask
        pool.shutdown(cancel_futures=True)
    shutil.rmtree(folder, ignore_errors=True)
