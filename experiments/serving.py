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
from experiments.scoring.config import reward_settings
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
    **sizes: float,
) -> ServiceConfig:
    """What is served. Raises ValueError or FileNotFoundError in one line for unknown rewards, options, limits
    and folders."""
    from orchestration.service.deployment import ServiceConfig
    from orchestration.service.gate import digest_of
    from orchestration.service.paths import allowed_roots

    if not rewards:
        raise ValueError("--rewards: give one or more names of the catalog, or package.module:Class")
    check_names(rewards)
    layout, given = Layout(out=out), reward_settings(settings, rewards)
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
        limits=limits_from(limits),
        batch=int(sizes["batch"]),
        replicas=int(sizes["replicas"]),
        cpus=sizes["cpus"],
        gpus=sizes["gpus"],
    )


def limits_from(settings: Sequence[str]) -> Limits:
    """Limits from NAME=NUMBER. Raises ValueError naming the nearest one."""
    from orchestration.service.limits import Limits

    names = [field.name for field in dataclasses.fields(Limits)]
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in names:
            raise ValueError(f"--limit {setting}: unknown limit; {nearest(name, names)}")
        try:
            values[name] = read_yaml(value)
        except yaml.YAMLError:
            raise ValueError(f"--limit {setting}: expected NAME=NUMBER") from None
    return fill(Limits, values, "--limit")


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
