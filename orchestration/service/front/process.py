"""The front as a process of its own, started again when it dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from orchestration.service.front.config import FrontConfig
from orchestration.service.front.run import READY

BACKLOG = 512
RESTART_PAUSE_S = 0.2


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at host:port; callers wait in it while nobody accepts. Raises OSError in one
    line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise OSError(f"--port {port}: {host} cannot be served there ({why}); take another port") from None
    with listener:
        yield listener


@contextmanager
def fronted(listener: socket.socket, config: FrontConfig) -> Iterator[None]:
    """Context manager: requests of `listener` are answered.

    Raises OSError where the process does not start.
    """
    keeper = _Keeper(listener, config)
    keeper.start()
    try:
        yield
    finally:
        keeper.end()


class _Keeper:
    def __init__(self, listener: socket.socket, config: FrontConfig) -> None:
        self.listener, self.config, self.ended = listener, config, threading.Event()
        self.starting = threading.Lock()

    def start(self) -> None:
        self.process = self._start()
        if self.process.stdout is None or self.process.stdout.readline() != READY:
            self.end()
            raise OSError("the service's front did not start; see the lines above")
        self.thread = threading.Thread(target=self._keep, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.ended.set()
        with self.starting, suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _keep(self) -> None:
        while not self.ended.is_set():
            self.process.wait()
            self.ended.wait(RESTART_PAUSE_S)
            with self.starting:
                if not self.ended.is_set():
                    print("the service's front ended and is started again", file=sys.stderr, flush=True)
                    self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # nothing of the service's environment, which may hold secrets: strangers talk to this process
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG") if key in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.service.front.run", str(self.listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self.listener.fileno(),),
            env=kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        with suppress(OSError):  # it died at once, which `start` tells
            assert process.stdin is not None
            process.stdin.write(self.config.to_line())
            process.stdin.flush()
        return process
