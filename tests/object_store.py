"""An S3-compatible server on the loopback, and what a process needs to reach it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

BUCKET = "corpus"
KEY, SECRET = "test-access-id", "test-hidden-value"


class ObjectStore:
    """moto's server in a thread; after `stop` it refuses connections, as a store that went away, and `start`
    brings it back as it was.

    All servers of one process share what they hold.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._running: Any = None
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._running = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._running.start()

    def stop(self) -> None:
        if self._running:
            self._running.stop()
        self._running = None


def environment(endpoint: str) -> dict[str, str]:
    """What a user sets."""
    return {
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def connect(endpoint: str) -> None:
    """The user's environment in this process, in which fsspec may have read its own already."""
    import fsspec
    from fsspec.config import conf

    os.environ.update(environment(endpoint))
    conf["s3"] = {"endpoint_url": endpoint}
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with the bucket `BUCKET`, and this process connected to it."""
    import fsspec
    from fsspec.config import conf

    before = {name: os.environ.get(name) for name in environment("")}
    configured = conf.pop("s3", None)
    server = ObjectStore()
    try:
        connect(server.endpoint)
        with suppress(FileExistsError):
            fsspec.filesystem("s3", use_listings_cache=False).mkdir(BUCKET)
        yield server
    finally:
        server.stop()
        conf.pop("s3", None)
        if configured is not None:
            conf["s3"] = configured
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
