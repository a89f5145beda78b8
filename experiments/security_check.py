"""`nava doctor --security`: what of a set-up is open to others. Reads only; asks no service but those of this
user on this machine."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "warning", "open"]
LOOPBACK = ("127.", "::1", "::ffff:127.")
OURS = (
    "experiments.cli",
    "orchestration.service",
    "nava ",
    "mlflow server",
    "ray::",
    "gcs_server",
    "raylet",
    "/ray/",
)
PATIENCE_S = 3.0
HEAD_BYTES = 200_000  # more than any service should read


@dataclass(frozen=True)
class Finding:
    """`open`: others can read a secret or run something; what to do about it is in `say`."""

    level: Level
    what: str
    say: str


def check_security(out: Path) -> list[Finding]:
    """Every check's findings; a check that cannot look says so."""
    found: list[Finding] = []
    for check in (_files, _ray, _listeners, _services, _tracking, _umask, _plugins):
        try:
            found += check(out)
        except Exception as error:
            found.append(
                Finding(
                    "warning", check.__name__.strip("_"), f"could not be checked ({type(error).__name__})"
                )
            )
    return found


def _files(out: Path) -> Iterator[Finding]:
    """Tokens and audits for their owner alone; no empty token."""
    from orchestration.ray_token import token_path

    service = out / "service"
    for path in (service / "token", service / "tokens.json", service / "audit.jsonl", token_path()):
        if not path.is_file():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Finding(
                "open", str(path), f"others can use it (mode {mode:o}); chmod 600 it, and make a new token"
            )
        elif not path.stat().st_size and path.suffix != ".jsonl":
            yield Finding("warning", str(path), "empty; remove it, a start makes a new one")
        else:
            yield Finding("ok", str(path), f"mode {mode:o}")
    for folder in _session_folders():
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o007:
            yield Finding(
                "open", str(folder), f"Ray's logs and sockets are open to all (mode {mode:o}); chmod 700 it"
            )


def _session_folders() -> list[Path]:
    base = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    return [found for found in (base / "ray", base / f"nava_{os.getuid()}") if found.is_dir()]


def _ray(_: Path) -> Iterator[Finding]:
    from orchestration.ray_security import MODE
    from orchestration.ray_token import ray_token

    mode = os.environ.get(MODE)
    if mode is not None and mode.lower() != "token":
        yield Finding(
            "open", f"{MODE}={mode}", "Ray asks for no token: whoever reaches it runs code; unset it"
        )
    elif not ray_token():
        yield Finding(
            "warning", "Ray's token", "none yet; `ray get-auth-token --generate` makes one for clusters"
        )
    else:
        yield Finding("ok", "Ray's token", "there, and Ray asks for it")


def _listeners(_: Path) -> Iterator[Finding]:
    """Ports of our processes that other machines reach."""
    found = [
        (address, port, name) for address, port, name in _listening() if not address.startswith(LOOPBACK)
    ]
    for address, port, name in found:
        where = f"{'all interfaces' if address in ('::', '0.0.0.0') else address}, port {port}"
        yield Finding(
            "warning", where, f"{name} listens there; reach it through a proxy with TLS, or by 127.0.0.1"
        )
    if not found:
        yield Finding("ok", "listening addresses", "the loopback only")


def _listening() -> list[tuple[str, int, str]]:
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if process.uids().real != os.getuid() or not any(sign in words for sign in OURS):
                continue
            found += [
                (one.laddr.ip, one.laddr.port, process.name()[:40])
                for one in process.net_connections("inet")
                if one.status == psutil.CONN_LISTEN
            ]
    return sorted(set(found))


def _services(_: Path) -> Iterator[Finding]:
    """Each front that runs here stops an endless head, and answers health."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "orchestration.service.front.run" not in process.cmdline():
                continue
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    yield _limits_of(one.laddr.ip, one.laddr.port)


def _limits_of(address: str, port: int) -> Finding:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    what = f"service at {address} port {port}"
    try:
        with socket.create_connection((host, port), PATIENCE_S) as sock:
            with suppress(ConnectionError):
                sock.sendall(b"GET /v1/rewards HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES)
            answer = sock.recv(64)
    except OSError as error:
        return Finding("warning", what, f"no answer within {PATIENCE_S:g} s ({type(error).__name__})")
    if b" 431 " in answer:
        return Finding("ok", what, "answers, and stops a head that is too large")
    return Finding(
        "open", what, "reads a head of any size before it asks for a token; end it and start it again"
    )


def _tracking(_: Path) -> Iterator[Finding]:
    from experiments.runs.store_uri import TRACKING_URI, has_user_info, public_uri

    uri = os.environ.get(TRACKING_URI, "")
    if has_user_info(uri):
        shown = public_uri(uri)
        say = (
            "holds a login, which every process of yours inherits; use MLFLOW_TRACKING_USERNAME and _PASSWORD"
        )
        yield Finding("warning", f"{TRACKING_URI}={shown}", say)
    else:
        yield Finding("ok", TRACKING_URI, "no login in it")


def _umask(_: Path) -> Iterator[Finding]:
    mask = os.umask(0o077)
    os.umask(mask)
    if not mask & 0o002:
        yield Finding("open", f"umask {mask:03o}", "new files can be written by everyone; umask 027")
    else:
        yield Finding("ok", f"umask {mask:03o}", "others cannot write new files")


def _plugins(_: Path) -> Iterator[Finding]:
    """What Python imports from folders that others can write runs as this user."""
    import sys

    open_folders = 0

    for name in filter(None, dict.fromkeys([*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])):
        path = Path(name)
        if path.is_dir() and stat.S_IMODE(path.stat().st_mode) & 0o002:
            open_folders += 1
            yield Finding("open", name, "Python imports from here and everyone can write it; chmod o-w it")
    if not open_folders:
        yield Finding("ok", "plug-ins", "no folder that Python imports from can be written by everyone")


def report(found: list[Finding]) -> list[dict[str, Any]]:
    return [{"level": one.level, "what": one.what, "say": one.say} for one in found]


def show(found: list[Finding], write: Callable[[str], None] = print) -> None:
    """Open doors first, as lines that a terminal takes."""
    order = {"open": 0, "warning": 1, "ok": 2}
    for one in sorted(found, key=lambda finding: order[finding.level]):
        line = f"{one.level:<9}{one.what}: {one.say}"
        write("".join(sign if sign.isprintable() else "?" for sign in line))
