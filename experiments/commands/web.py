"""`nava web`: the page over the generation service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.score import RewardNames, RewardSettings

ServiceUrls = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="[NAME=]URL", help="services of `nava serve generate`; http://127.0.0.1:8124"),
]
TokenFiles = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="token-file",
        metavar="[NAME=]FILE",
        help="a service's token, of scope generate; may be given again; else $NAVA_API_TOKEN, else "
        "OUT/service/token",
    ),
]
PasswordFile = Annotated[
    Path | None,
    tyro.conf.arg(help="password of the user nava; else $NAVA_WEB_PASSWORD; needed beyond this machine"),
]
KeptSize = Annotated[float, tyro.conf.arg(metavar="GIB", help="of fetched clips; the oldest go first")]
PASSWORD = "NAVA_WEB_PASSWORD"
MIN_PASSWORD = 8


def web(
    services: ServiceUrls = (),
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token_files: TokenFiles = (),
    password_file: PasswordFile = None,
    rewards: RewardNames = (),
    settings: RewardSettings = (),
    keep: KeptSize = 4.0,
    out: Path = Path("out"),
) -> None:
    """Open a page on which people write prompts, hear the clips, compare models and send pairs to a vote.

    The page is a client of `nava serve generate`, on this machine or another: jobs, queue and limits are the
    service's. Two services, or adapters of one, stand side by side as A and B from the same noise. Scores are
    made in the page's process by --rewards (else sync, words heard, similarity to the voice), each with its
    reason where there is none; `--rewards remote --set remote.url=... --set remote.reward=...` asks a reward
    service. Clips, votes and what they were made with lie in OUT/web. All who use the page share its token's
    jobs. Beyond this machine a password is needed, and a proxy with TLS, without which browsers give no
    microphone. docs/web.md has the rest; Gradio is the extra `web`.

      nava serve generate --model out/align/model --adapter look=my/look/adapter
      nava web
      nava web base=http://gpu1:8124 ours=http://gpu2:8124 --token-file gpu.token
    """
    from experiments.voting.server import bound_socket
    from experiments.web.desk import PageDesk
    from experiments.web.scores import PageScorer, checked_rewards, usual_rewards
    from experiments.web.services import services_of
    from experiments.web.store import PageStore

    if not 0 <= port < 65536:
        raise ValueError(f"--port {port}: expected 0 to 65535")
    if not 0 < keep < 1e6:
        raise ValueError(f"--keep {keep:g}: expected GiB, more than 0")
    password = _password(password_file, host)
    options = checked_rewards(rewards or usual_rewards(out), settings, out)
    found = services_of(services, token_files, out / "service" / "token")
    _check_gradio()
    with bound_socket(host, port) as listener:
        desk = PageDesk(found, PageStore(out / "web", round(keep * 2**30)), PageScorer(options))
        where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        from experiments.web.server import run_page

        run_page(desk, listener, password, where)


def _password(path: Path | None, host: str) -> str:
    """Raises ValueError or FileNotFoundError in one line, without the password."""
    from experiments.voting.server import is_loopback

    given, where = os.environ.pop(PASSWORD, ""), f"${PASSWORD}"
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"--password-file {path}: no such file; put the password there")
        given, where = path.read_text(encoding="utf-8", errors="replace").strip(), f"--password-file {path}"
        if not given:
            raise ValueError(f"{where}: empty; put the password there")
    if given and len(given) < MIN_PASSWORD:
        raise ValueError(f"{where}: a password has at least {MIN_PASSWORD} characters")
    if not given and not is_loopback(host):
        raise ValueError(
            f"--host {host}: others can reach it, so it needs a password; --password-file FILE or ${PASSWORD}"
        )
    return given


def _check_gradio() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError("`nava web` needs Gradio; pip install 'nava[web]'")
