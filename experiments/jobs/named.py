"""What a launch request names and is not there, seen from where it is launched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments.jobs.request import Request
from pretrain.config import one_line
from pretrain.data.stream.sample_set import check_sets
from pretrain.recipe import PretrainConfig
from pretrain.storage import check_reachable, is_file, is_remote, place

REGISTERED = "models:/"


def missing(request: Request, config: PretrainConfig, elsewhere: bool, mounts: str = "") -> list[str]:
    """One line each: option, what is not there. What nothing names (a default below --out) is not looked for.

    elsewhere: paths are those of other machines' file systems, as of pods, so only URLs are looked at.
    mounts: HOST:CONTAINER of containers, whose paths are taken for the host's.
    """
    found: list[str] = []
    inside = [part.split(":")[1] for part in mounts.split(",") if part.count(":")]

    def unseen(text: str) -> bool:
        return (not is_remote(place(text)) and elsewhere) or any(text.startswith(path) for path in inside)

    for part in filter(None, mounts.split(",")):
        if not Path(part.split(":")[0]).exists():
            found.append(f"--mounts: {part.split(':')[0]}: no such path here")
    if request.workdir and not unseen(request.workdir) and not Path(request.workdir).is_dir():
        found.append(f"--workdir: {request.workdir}: no such folder here")
    start = request.init_from
    if start and not start.startswith(REGISTERED) and not unseen(start):
        found += _told("--from", partial(_model, start))
    if config.latents and not unseen(config.latents):
        names = list(config.stages) if request.stage == "all" else [request.stage]
        for name in names:
            looked = partial(check_sets, place(config.latents), config.stage(name))
            found += _told(f"pretrain.latents of {name}", looked)
    if config.checkpoint.folder and not unseen(config.checkpoint.folder):
        states = partial(check_reachable, place(config.checkpoint.folder))
        found += _told("pretrain.checkpoint.folder", states)
    out = Path(request.out)
    if out.is_absolute() and not unseen(request.out) and not (out.exists() or out.parent.is_dir()):
        found.append(f"--out: {out.parent}: no such folder here")
    return found


def _model(text: str) -> None:
    if not is_file(place(text) / "config.json"):
        raise FileNotFoundError(f"{text}: no config.json there; give a model folder of `nava import`")


def _told(option: str, look: Callable[[], object]) -> list[str]:
    try:
        look()
    except (OSError, ValueError) as error:
        return [f"{option}: {one_line(error)}"]
    return []
