"""`nava serve rewards`: scores as a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.score import RewardNames, RewardSettings

Roots = Annotated[
    tyro.conf.UseAppendAction[tuple[Path, ...]],
    tyro.conf.arg(
        name="root", metavar="FOLDER", help="a folder whose files may be named by path; may be given again"
    ),
]
LimitSettings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="limit",
        metavar="NAME=NUMBER",
        help="override a limit of orchestration/service/limits.py; may be given again",
    ),
]
RayAddress = Annotated[
    str, tyro.conf.arg(metavar="ADDRESS", help="a Ray cluster; an embedded one where not given")
]
TokenFile = Annotated[
    Path | None,
    tyro.conf.arg(help="the bearer token; else $NAVA_API_TOKEN, else OUT/service/token, made where missing"),
]


DEFAULTS = ("snr_estimate_db", "lip_loudness_correlation")


def rewards(
    rewards: RewardNames = (),
    rubric: Annotated[
        Path | None, tyro.conf.arg(metavar="YAML", help="rubric of `nava score`: answers have its total")
    ] = None,
    host: str = "127.0.0.1",
    port: int = 8123,
    token_file: TokenFile = None,
    roots: Roots = (),
    settings: RewardSettings = (),
    limits: LimitSettings = (),
    out: Path = Path("out"),
    batch: int = 8,
    replicas: int = 1,
    cpus: float = 0.0,
    gpus: float = 0.0,
    ray: RayAddress = "local",
) -> None:
    """Serve rewards over HTTP until Ctrl-C: POST /v1/score, GET /v1/rewards, /metrics (Prometheus) and
    /healthz.

    Without --rewards they are those of the rubric's items, or snr_estimate_db and lip_loudness_correlation. A
    request has one clip: of a rubric only items of normalise: none give a total, others an empty one with the
    reason. Networks and words that the pipeline made are taken from --out. Without --root clips can only be
    uploaded. The service has no TLS: put a proxy with TLS in front of it on an untrusted network.
    `rewards.remote:NAME` uses it as a reward.
    """
    from experiments.serving import config_from, rubric_notices, serve_until_stopped
    from orchestration.ray_token import send_token
    from orchestration.service.token import token_from

    if not 0 < port < 65536:
        raise ValueError(f"--port {port}: expected 1 to 65535")
    if ray != "local":
        send_token()
    token, where = token_from(token_file, out / "service" / "token")
    named = [name for given in rewards for name in given.split(",") if name]
    config = config_from(
        named if named or rubric else DEFAULTS,
        settings,
        limits,
        roots,
        out,
        token,
        rubric,
        batch=batch,
        replicas=replicas,
        cpus=cpus,
        gpus=gpus,
    )
    for notice in rubric_notices(rubric):
        print(notice)
    serve_until_stopped(config, host, port, ray, where)
