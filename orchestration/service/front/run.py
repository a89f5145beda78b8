"""`python -m orchestration.service.front.run FD`: the front on the listening socket of that descriptor.

Standard input has the configuration as one line, then stays open: its end is the end of the process, so that
none is left when the one that started it dies. Nothing of it is in the arguments or the environment.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

from orchestration.service.front.config import FrontConfig
from orchestration.service.front.server import Front

READY = b"ready\n"


async def _serve_until_closed(listener: socket.socket, config: FrontConfig) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    serving = asyncio.create_task(Front(config).serve(listener))
    os.write(sys.stdout.fileno(), READY)
    await asyncio.wait((serving, asyncio.create_task(ended.wait())), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the parent ends this process
    os.umask(0o077)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(sys.stdin.fileno(), 65_536)):
            return
        line += piece
    asyncio.run(_serve_until_closed(listener, FrontConfig.from_line(line)))


if __name__ == "__main__":
    main()
