"""Ray is started and joined with its token only: who reaches a Ray without one runs code on its machines."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.private_files import private_folder, tighten, write_private
from orchestration.ray_token import ray_token, token_path

MODE, LOOPBACK_ONLY = "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
OPTION = "--insecure-ray"
PROBE_S = 15.0
HOW = (
    "`ray get-auth-token --generate` there, start it with RAY_AUTH_MODE=token, and put the same token into "
    f"~/.ray/auth_token here; or give {OPTION}"
)


def check_mode(insecure: bool) -> None:
    """Raises ValueError where the environment switches Ray's authentication off."""
    mode = os.environ.get(MODE, "token")
    if mode.lower() != "token" and not insecure:
        raise ValueError(
            f"{MODE}={mode}: Ray without its token runs code of whoever reaches its ports; unset it, or give "
            f"{OPTION}"
        )


def embedded_options(insecure: bool = False, temporary: str | None = None) -> dict[str, Any]:
    """Options of `ray.init` for a Ray of this machine alone: its token in a file of mode 0600, its session
    in a folder of mode 0700, its ports on the loopback. Raises ValueError as `check_mode` and for folders of
    others; OSError where the token cannot be written."""
    check_mode(insecure)
    if os.environ.get(MODE, "token").lower() == "token":
        make_token()
    _listen_on_loopback()
    base = temporary or os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "linux" else "")
    # Ray opens its own folder to everyone (mode 0777), so it gets one inside a closed one; both names are
    # short because those of sockets must be
    folder = private_folder(Path(base or tempfile.gettempdir()) / f"nava_{os.getuid()}")
    return {"_temp_dir": str(folder / "r")}


def make_token() -> None:
    """A token for Ray where it has none, before Ray makes one that others can read."""
    path = token_path()
    if path.is_file() and path.stat().st_size:
        tighten(path)
    elif not os.environ.get("RAY_AUTH_TOKEN"):
        write_private(path, secrets.token_hex(32).encode())


def _listen_on_loopback(only: bool = True) -> None:
    """Ray takes 127.0.0.1 for the node's address, and listens there only, by this switch, which it has for
    systems without clusters; `_node_ip_address` does not accept it."""
    if only:
        os.environ[LOOPBACK_ONLY] = "0"
    else:
        os.environ.pop(LOOPBACK_ONLY, None)
    if constants := sys.modules.get("ray._private.ray_constants"):  # imported before
        constants.ENABLE_RAY_CLUSTER = not only  # type: ignore[attr-defined]


def join_securely(address: str, insecure: bool = False, is_open: Callable[[str], bool] | None = None) -> None:
    """Makes Ray send its token to the cluster at `address`. Raises ValueError where there is no token, or
    where the cluster answers without one; OSError where nobody answers."""
    check_mode(insecure)
    _listen_on_loopback(False)
    token = ray_token()
    if token and MODE not in os.environ:
        os.environ[MODE] = "token"
    if not os.environ.get("RAY_AUTH_TOKEN") and token_path().is_file():
        tighten(token_path())
    if insecure:
        return
    if not token:
        raise ValueError(f"Ray at {address}: no token here (RAY_AUTH_TOKEN, ~/.ray/auth_token); {HOW}")
    if (is_open or answers_without_token)(address):
        raise ValueError(f"Ray at {address}: it answers without a token, so it takes code from anyone; {HOW}")


def answers_without_token(address: str) -> bool:
    """True where the cluster's control store answers a call that has no token.

    Raises ValueError for an address that cannot be asked, OSError where nobody answers: what cannot be asked
    is not joined, as it may answer the next call.
    """
    import grpc

    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        if not (address := canonicalize_bootstrap_address("auto") or ""):
            raise OSError("--ray auto: no Ray runs here; `ray start --head` starts one")
    if "://" in address:
        raise ValueError(f"--ray {address}: expected HOST:PORT of the cluster's head, or auto")
    with _channel(address) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise OSError(
                    f"Ray at {address}: cannot be reached ({code.name}), so nothing tells whether it asks "
                    "for a token; `ray start --head` starts one"
                ) from None
            return code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    return True


def _channel(address: str) -> Any:
    """As Ray's own, but without its token."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address)
    from ray._common.tls_utils import load_certs_from_env

    chain, key, root = load_certs_from_env()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain))


def check_dashboard(url: str) -> None:
    """Returns where the dashboard refuses to list its jobs without a token.

    url: http(s)://HOST:PORT, which `orchestration.launch.connect` also sends the job to. Raises ValueError
    where the dashboard lists them: it takes jobs from anyone too; ConnectionError where it does not answer,
    OSError where it answers neither with them nor with a refusal.
    """
    from rewards.http import NoAnswer, Unending, exchange

    try:
        # proxies of the environment, as Ray's client has them
        answer = exchange(f"{url.rstrip('/')}/api/jobs/", timeout_s=PROBE_S)
    except NoAnswer as error:
        if not isinstance(error, Unending):
            raise ConnectionError(error.reason) from None
        raise ValueError(f"Ray at {url}: {error.reason} for its jobs; {HOW}") from None
    if answer.status == 200:
        raise ValueError(f"Ray at {url}: it takes jobs without a token, so it runs anyone's code; {HOW}")
    if answer.status not in (401, 403):
        raise OSError(
            f"Ray at {url}: answers {answer.status} where it should list its jobs or ask for a token; run "
            f"again once it has started, give the dashboard's address, or {OPTION}"
        )
