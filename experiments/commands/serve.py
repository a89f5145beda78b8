"""`nava serve rewards` and `nava serve generate`: scores, and clips, as a service."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.commands.options import InsecureRay, JsonFlag, SetOptions, recipe_for
from experiments.commands.score import RewardNames, RewardSettings
from experiments.video_options import VideoServing

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

USUAL_VIDEOS = VideoServing()
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
    insecure_ray: InsecureRay = False,
) -> None:
    """Serve rewards over HTTP until Ctrl-C: POST /v1/score, GET /v1/rewards, /metrics (Prometheus) and
    /healthz.

    Without --rewards they are those of the rubric's items, or snr_estimate_db and lip_loudness_correlation. A
    request has one clip: of a rubric only items of normalise: none give a total, others an empty one with the
    reason. Networks and words that the pipeline made are taken from --out. Without --root clips can only be
    uploaded. `nava serve tokens add NAME` makes further tokens, which count at once; OUT/service/audit.jsonl
    has a line per request. The service has no TLS: put a proxy with TLS before it on an untrusted network.
    `rewards.remote:NAME` uses it as a reward.
    """
    from experiments.serving import config_from, guarded, rubric_notices, serve_until_stopped
    from orchestration.service.token import token_from

    if not 0 < port < 65536:
        raise ValueError(f"--port {port}: expected 1 to 65535")
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
    config = guarded(config, out / "service", ray, insecure_ray)
    for notice in rubric_notices(rubric):
        print(notice)
    serve_until_stopped(config, host, port, ray, where)


def generate(
    options: Annotated[VideoServing, tyro.conf.arg(name="")] = USUAL_VIDEOS,
    recipe: Annotated[str, tyro.conf.arg(help="whose generate.* are the defaults of requests")] = "mini",
    settings: SetOptions = (),
    host: str = "127.0.0.1",
    port: int = 8124,
    token_file: TokenFile = None,
    out: Path = Path("out"),
    ray: RayAddress = "local",
    insecure_ray: InsecureRay = False,
) -> None:
    """Serve clips over HTTP until Ctrl-C or SIGTERM: POST /v1/videos makes a job, GET /v1/videos/ID tells its
    progress, GET /v1/videos/ID/content is the clip. Clients of OpenAI's video API can use it.

    An accepted job is on disk (OUT/videos/jobs.db) and is made, whatever is killed meanwhile; results stay
    for a day, 4 GiB a token (--limit kept_seconds, token_bytes). SIGTERM lets batches that run finish;
    jobs that wait are made when the service is started again. `nava serve tokens add NAME --scopes generate`
    makes tokens, each of which sees its own jobs only; OUT/videos/audit.jsonl has a line per request. The
    service has no TLS: put a proxy with TLS before it on an untrusted network. docs/generation_service.md
    has the rest.

      nava serve generate --model out/align/model --adapter look=my/look/adapter --limit queue=1000
      curl -H "Authorization: Bearer $(cat out/service/token)" localhost:8124/v1/videos \\
           -F 'prompt=A woman says: <S>seven<E>.' -F seconds=1 -F reference_0=@voice.wav
    """
    from experiments.video_serving import checked, serve_videos
    from orchestration.service.token import token_from

    if not 0 < port < 65536:
        raise ValueError(f"--port {port}: expected 1 to 65535")
    config = checked(options, recipe_for(recipe, settings).generate, out, ray, insecure_ray)
    token, where = token_from(token_file, out / "service" / "token")
    serve_videos(config, ray, host, port, token, where)


def service_tokens(out: Path) -> Path:
    return out / "service" / "tokens.json"


def tokens_add(
    name: Annotated[str, tyro.conf.Positional],
    /,
    scopes: tuple[Literal["score", "generate", "metrics", "admin"], ...] = ("score",),
    per_minute: Annotated[int, tyro.conf.arg(help="requests a minute; 0 = as many as come")] = 0,
    in_flight: Annotated[int, tyro.conf.arg(help="requests at once; 0 = the service's limits only")] = 0,
    replace: Annotated[bool, tyro.conf.arg(help="a new token for a name that is there (rotation)")] = False,
    out: Path = Path("out"),
) -> None:
    """Make an access token of the services and print it, once: only its SHA-256 is kept, in
    OUT/service/tokens.json. A running service takes it within a second.

    Scopes: score (/v1/score, /v1/rewards), generate (/v1/videos, /v1/models), metrics (/metrics), admin
    (all). --replace makes a new token with the scopes and rates of the old one, which is refused then.
    """
    from orchestration.service.access import add_token

    print(add_token(service_tokens(out), name, scopes, per_minute, in_flight, replace=replace))


def tokens_list(out: Path = Path("out"), as_json: JsonFlag = False) -> None:
    """Names, scopes and rates of the access tokens in OUT/service/tokens.json; none of the tokens."""
    from orchestration.service.access import read_tokens

    tokens = read_tokens(service_tokens(out))
    rows = [
        {name: value for name, value in dataclasses.asdict(token).items() if name != "sha256"}
        for token in tokens
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{len(rows)} tokens besides the service's own ({service_tokens(out)})")
    for row in rows:
        rates = f"{row['per_minute'] or 'any number'} a minute, {row['in_flight'] or 'any number'} at once"
        print(f"{row['name']:<24}{','.join(row['scopes']):<16}{rates}, made {row['made']}")


def tokens_revoke(name: Annotated[str, tyro.conf.Positional], /, out: Path = Path("out")) -> None:
    """Take an access token away; a running service refuses it within a second."""
    from orchestration.service.access import revoke_token

    revoke_token(service_tokens(out), name)
    print(f"{name}: revoked")
