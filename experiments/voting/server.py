"""Starting and ending the server of the pages."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path

import uvicorn

from experiments.voting.app import make_app
from experiments.voting.site import Site

MAX_CONNECTIONS = 1000  # requests at once; beyond, 503
KEEP_ALIVE_S = 20
BACKLOG = 2048  # connections that wait, also before the server accepts


def default_folder(place: str) -> Path:
    """Where clips and the owner's token lie: beside a SQLite file, surveys/ for a URL."""
    return Path("surveys") if "://" in place else Path(place).with_suffix(".files")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError in one line where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}; give another one") from None
    return listener


def make_server(site: Site) -> uvicorn.Server:
    """Without an access log, since paths hold the secrets of links."""
    config = uvicorn.Config(
        make_app(site),
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def run_server(site: Site, listener: socket.socket) -> None:
    """Until SIGINT or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):
        make_server(site).run(sockets=[listener])
