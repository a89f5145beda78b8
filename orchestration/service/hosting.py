"""An application on Ray Serve, on the loopback behind its front."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from orchestration.futures import short_line
from orchestration.ray_security import embedded_options, join_securely
from orchestration.service.front.config import FrontConfig
from orchestration.service.front.process import fronted, listening
from orchestration.service.limits import MIB
from rewards import plugins

LOCAL, LOOPBACK = "local", "127.0.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhichRay:
    """address: `local` for an embedded one; insecure: one without a token is taken; temporary: its folder."""

    address: str = LOCAL
    insecure: bool = False
    temporary: str | None = None


@contextmanager
def hosted(
    name: str,
    application: Callable[[], serve.Application],
    front: FrontConfig,
    host: str,
    port: int,
    which: WhichRay,
    load: Callable[[int], None],
) -> Iterator[int]:
    """Context manager: the application at host:port; yields Ray Serve's port on the loopback.

    front: its backend_port is put in; load: called with that port before callers are let in. Raises
    ValueError or OSError in one line: the port is taken, no Ray there or one without a token, what `load`
    raises.
    """
    with listening(host, port) as listener, _free_port() as backend_port:
        _connect(which)
        try:
            serve.start(
                http_options={"host": LOOPBACK, "port": backend_port},
                logging_config=LoggingConfig(enable_access_log=False),
            )
            serve.run(application(), name=name, route_prefix="/")
            _check_reachable(backend_port, which.address)
            load(backend_port)
            with fronted(listener, dataclasses.replace(front, backend_port=backend_port)):
                yield backend_port
        except (RayError, RayServeException, RuntimeError) as error:
            raise OSError(f"the service did not start ({short_line(error)}); see Ray's logs") from error
        finally:
            # the application may not exist
            with contextlib.suppress(RayError, RayServeException, RuntimeError):
                serve.delete(name)  # and nothing else that a cluster serves
            ray.shutdown()


@contextmanager
def _free_port() -> Iterator[int]:
    """A port of the loopback that nobody else can take.

    Ray binds with SO_REUSEPORT, so two services on one port would share its requests.
    """
    with socket.socket() as guard:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        guard.bind((LOOPBACK, 0))  # and never listens
        yield guard.getsockname()[1]


def _check_reachable(port: int, address: str) -> None:
    """Raises OSError where Ray Serve's proxy is on another machine, or was started with another port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=5.0).close()
    except OSError:
        raise OSError(
            f"--ray {address}: its Serve proxy does not listen on this machine's port {port}; run this on "
            "the cluster's head, where no other Serve is running"
        ) from None


def _connect(which: WhichRay) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # 5 s are short on a busy machine
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if ray.is_initialized():
        raise ValueError("this process is connected to a Ray already; leave it first (ray.shutdown)")
    if which.address == LOCAL:
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a service on a busy machine
        quiet |= {
            "num_cpus": os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": 512 * MIB,
            **embedded_options(which.insecure, which.temporary),
        }
    else:
        join_securely(which.address, which.insecure)
    try:
        inherited = {} if which.address == LOCAL else {"runtime_env": {"env_vars": plugins.inherited()}}
        ray.init(address=which.address, **inherited, **quiet)
    except Exception as error:  # a node that does not start in time is a plain Exception
        raise OSError(
            f"--ray {which.address}: cannot be reached ({short_line(error)}); start it (`ray start --head`) "
            "or leave it out"
        ) from None
