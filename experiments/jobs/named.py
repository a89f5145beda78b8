"""What a launch request names and is not there, seen from where it is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from experiments.jobs.request import Request
from finetune.sft.config import FinetuneConfig
from pretrain.config import one_line
from pretrain.data.encoding.parts import MANIFEST
from pretrain.data.plain import is_plain
from pretrain.data.stream.sample_set import check_sets
from pretrain.recipe import PretrainConfig
from pretrain.storage import check_reachable, is_file, is_remote, list_folder, place

REGISTERED = "models:/"


class _Named(NamedTuple):
    """An option or setting, the place that it names, and what raises where that is not there."""

    option: str
    text: str
    look: Callable[[str], object]


def missing(
    request: Request,
    pretrain: PretrainConfig,
    elsewhere: bool,
    mounts: str = "",
    finetune: FinetuneConfig | None = None,
) -> list[str]:
    """One line each: option, what is not there. What nothing names (a default below --out) is not looked for.

    pretrain, finetune: sections of the recipe; the second is needed where a fine-tuning is launched.
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
    tuned = request.tunes and finetune is not None
    for named in _of_finetuning(request, pretrain, finetune) if tuned else _of_pretraining(request, pretrain):  # type: ignore[arg-type]
        text = _from_workdir(named.text, request.workdir)
        if named.text and not named.text.startswith(REGISTERED) and not unseen(text):
            found += _told(named.option, partial(named.look, text))
    for option, text in (("--out", request.out), ("--finetune.to", request.finetune.to)):
        out = Path(text)
        if out.is_absolute() and not unseen(text) and not (out.exists() or out.parent.is_dir()):
            found.append(f"{option}: {out.parent}: no such folder here")
    return found


def _of_pretraining(request: Request, config: PretrainConfig) -> Iterator[_Named]:
    yield _Named("--from", request.init_from, _model)
    for name in list(config.stages) if request.stage == "all" else [request.stage]:
        yield _Named(f"pretrain.latents of {name}", config.latents, partial(_sets, config, name))
    yield _Named("pretrain.checkpoint.folder", config.checkpoint.folder, _store)


def _of_finetuning(request: Request, pretrain: PretrainConfig, config: FinetuneConfig) -> Iterator[_Named]:
    asked = request.finetune
    yield _Named("--finetune.clips", asked.clips, _clips)
    yield _Named("--finetune.model", asked.model, _model)
    yield _Named("--finetune.codec", asked.codec, _codec)
    if config.base_share and config.base:
        yield _Named("finetune.base", config.base, _base)
    elif config.base_share:
        last = list(pretrain.stages)[-1]
        yield _Named(f"pretrain.latents of {last}", pretrain.latents, partial(_sets, pretrain, last))
    yield _Named("finetune.validation", config.validation, _base)
    yield _Named("finetune.prompts", config.prompts, _file)
    yield _Named("finetune.checkpoint.folder", config.checkpoint.folder, _store)


def _from_workdir(text: str, workdir: str) -> str:
    """A path as the ranks see it, which start in --workdir."""
    return str(Path(workdir) / text) if workdir and text and not is_remote(place(text)) else text


def _sets(config: PretrainConfig, stage: str, text: str) -> None:
    check_sets(place(text), config.stage(stage))


def _store(text: str) -> None:
    check_reachable(place(text))


def _model(text: str) -> None:
    if not is_file(place(text) / "config.json"):
        raise FileNotFoundError(f"{text}: no config.json there; give a model folder of `nava import`")


def _codec(text: str) -> None:
    if not is_file(place(text) / "config.json"):
        raise FileNotFoundError(f"{text}: no config.json there; give a codec folder of `nava codec`")


def _clips(text: str) -> None:
    found = place(text)
    if not (is_file(found) or is_file(found / MANIFEST) or (not is_remote(found) and is_plain(found))):
        raise FileNotFoundError(
            f"{text}: no clips there; give a manifest, an encoded set, a folder or a table of clips"
        )


def _base(text: str) -> None:
    found = place(text)
    if not any(is_file(path / MANIFEST) for path in (found, *list_folder(found))):
        raise FileNotFoundError(f"{text}: no encoded set there; run `nava encode`")


def _file(text: str) -> None:
    if not is_file(place(text)):
        raise FileNotFoundError(f"{text}: no such file there")


def _told(option: str, look: Callable[[], object]) -> list[str]:
    try:
        look()
    except (OSError, ValueError) as error:
        return [f"{option}: {one_line(error)}"]
    return []
