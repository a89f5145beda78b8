"""The reward service with this repository's rewards: options of the pipeline's networks, a line to try it,
and its end."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.layout import Layout
from experiments.scoring.config import RubricFile, read_rubric, reward_settings
from experiments.scoring.options import reward_options
from rewards.catalog import check_names, checked_options
from rewards.options import fill, nearest, read_yaml

if TYPE_CHECKING:
    from orchestration.service.deployment import ServiceConfig
    from orchestration.service.limits import Limits


def config_from(
    rewards: Sequence[str],
    settings: Sequence[str],
    limits: Sequence[str],
    roots: Sequence[Path],
    out: Path,
    token: str,
    rubric: Path | None = None,
    **sizes: float,
) -> ServiceConfig:
    """What is served: `rewards`, or those of the rubric's items, and its total.

    Raises ValueError or FileNotFoundError in one line for unknown rewards, options, limits and folders, and a
    rubric of rewards that are not served.
    """
    from orchestration.service.deployment import ServiceConfig
    from orchestration.service.gate import digest_of
    from orchestration.service.paths import allowed_roots

    file = read_rubric(rubric) if rubric else None
    rewards = list(rewards) or (list(file.rewards) if file else [])
    if not rewards:
        raise ValueError(
            "--rewards: give one or more names of the catalog, or package.module:Class, or a --rubric"
        )
    check_names(rewards)
    check_served(file, rewards)
    layout, given = Layout(out=out), _options(file, settings, rewards)
    names = tuple(dict.fromkeys(rewards))
    options = reward_options(list(names), layout.corpus, layout.syncnet, given=given)
    checked_options(names, options)
    for name, number in sizes.items():
        if not (0 if name in ("cpus", "gpus") else 1) <= number < math.inf:
            raise ValueError(
                f"--{name}: expected {'0 or more' if name in ('cpus', 'gpus') else 'at least 1'}, got "
                f"{number}"
            )
    return ServiceConfig(
        rewards=names,
        token_digest=digest_of(token),
        options=options,
        roots=allowed_roots(roots),
        rubric=file.rubric if file else None,
        limits=limits_from(limits),
        batch=int(sizes["batch"]),
        replicas=int(sizes["replicas"]),
        cpus=sizes["cpus"],
        gpus=sizes["gpus"],
    )


def guarded(config: ServiceConfig, folder: Path, ray: str, insecure: bool) -> ServiceConfig:
    """With the named tokens and the audit of `folder`, on a Ray that asks for its token unless `insecure`.

    Raises ValueError in one line.
    """
    from orchestration.ray_security import check_mode, join_securely
    from orchestration.service.access import read_tokens

    tokens = folder / "tokens.json"
    read_tokens(tokens)
    if ray == "local":
        check_mode(insecure)
    else:
        join_securely(ray, insecure)
    return dataclasses.replace(config, tokens=tokens, audit=folder / "audit.jsonl", insecure_ray=insecure)


def check_served(file: RubricFile | None, rewards: Sequence[str]) -> None:
    """Raises ValueError for a rubric's item whose reward is not served."""
    if missing := [name for name in (file.rewards if file else ()) if name not in rewards]:
        assert file
        raise ValueError(
            f"{file.path}: items.{missing[0]}: not among --rewards; {nearest(missing[0], rewards)}, or leave "
            "--rewards out"
        )


def rubric_notices(path: Path | None) -> list[str]:
    """What a service, which scores one clip at a time, cannot do with a rubric file."""
    if path is None:
        return []
    file = read_rubric(path)
    notices = [
        f"{path}: items.{item.reward}.normalise: {item.normalise} compares clips, and a request has one: "
        "totals are empty, with this reason; set none for totals"
        for item in file.rubric.items
        if item.weight and item.normalise != "none"
    ]
    return notices + ([f"{path}: guardrails: a service measures none"] if file.guardrails else [])


def _options(
    file: RubricFile | None, settings: Sequence[str], rewards: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Options of the rubric file, overridden by those of --set."""
    known = {name: dict(options) for name, options in (file.options if file else {}).items()}
    for name, options in reward_settings(settings, rewards).items():
        known[name] = {**known.get(name, {}), **options}
    if file and (unasked := next((name for name in file.options if name not in rewards), "")):
        raise ValueError(f"{file.path}: options.{unasked}: not served; {nearest(unasked, rewards)}")
    return known


def limits_from(settings: Sequence[str]) -> Limits:
    """Limits from NAME=NUMBER. Raises ValueError naming the nearest one."""
    from orchestration.service.limits import Limits

    return limits_of(settings, Limits)[0]


def limits_of(settings: Sequence[str], *kinds: type) -> list[Any]:
    """An object of each of these dataclasses of limits, from NAME=NUMBER; names are unique over them.

    Raises ValueError naming the nearest one.
    """
    owners = {field.name: kind for kind in kinds for field in dataclasses.fields(kind)}
    values: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in owners:
            raise ValueError(f"--limit {setting}: unknown limit; {nearest(name, owners)}")
        try:
            values[owners[name]][name] = read_yaml(value)
        except yaml.YAMLError:
            raise ValueError(f"--limit {setting}: expected NAME=NUMBER") from None
    return [fill(kind, values[kind], "--limit") for kind in kinds]


def serve_until_stopped(config: ServiceConfig, host: str, port: int, address: str, token: str) -> None:
    """Serves until SIGINT or SIGTERM, then ends every process it began. `token` is the shell's word for the
    token."""
    from orchestration.service.deployment import running

    stop = threading.Event()
    print(f"starting {', '.join(config.rewards)}", flush=True)
    with running(config, host, port, address):
        for number in (signal.SIGINT, signal.SIGTERM):  # over those that Ray has set
            signal.signal(number, lambda *_: stop.set())
        print(try_line(config, host, port, token), flush=True)
        stop.wait()
        print("stopping", flush=True)


def try_line(config: ServiceConfig, host: str, port: int, token: str) -> str:
    """A command that scores a clip, and where the rest is."""
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    request = """-F 'request={"prompt": "A woman says: <S>seven<E>."}'"""
    return (
        f"serving {', '.join(config.rewards)} at {where}; Ctrl-C ends it. Try:\n"
        f'curl -H "Authorization: Bearer {token}" -F video=@CLIP.mp4 {request} {where}/v1/score'
    )
