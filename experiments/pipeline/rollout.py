"""Stage `rollout`: several clips of each alignment prompt by the pretrained model; the same for any model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from finetune.align_run import digest
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.prompts import read_prompt_set
from finetune.recipe import AlignConfig
from finetune.rollout_media import MEDIA, write_media
from finetune.rollout_store import INDEX, META, RolloutStore, open_store
from pretrain.codecs.base import check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.config import to_json
from pretrain.data.corpus.texts import ALIGN_TRAIN
from pretrain.launch.stage_run import model_config
from pretrain.owned import MARKER
from pretrain.prompt import read_prompts
from pretrain.randomness import stable_hash

MADE_FROM = "made_from"  # fact of a store: digest of what its clips depend on
PROMPTS = f"{ALIGN_TRAIN}.jsonl"
NEUTRAL = ("device",)  # of RolloutsConfig: a store is kept wherever it was made
_SHARD = re.compile(r"\d{5}\.safetensors")
# of AlignConfig: what the clips depend on
_SIZES = ("num_frames", "fps", "height", "width", "seed", "stop")


@dataclass(frozen=True, kw_only=True)
class RolloutInputs:
    """Model folder, codec and prompts to roll out, and the folder of the store."""

    config: RolloutsConfig
    sizes: AlignConfig
    model: Path
    codec: Path
    prompts: Path
    out: Path


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout, recipe = job.layout, job.recipe
    check_nothing_foreign(layout.rollouts)
    prompts = layout.prompts / PROMPTS
    facts = make_rollouts(
        recipe.rollout, recipe.align, layout.model("stage3"), layout.codec, prompts, layout.rollouts
    )
    tracker.set_tags({"nava.rollouts": f"{facts['clips']} clips of {facts['prompts']} prompts"})


def rollout_of(inputs: RolloutInputs, overwrite: bool = False) -> RolloutStore:
    """A store of clips of any model; a store of the very same inputs is kept as it is.

    All prompts but those that an alignment on them holds out. Everything is checked before the model is
    loaded. Raises ValueError or FileNotFoundError in one line: model and codec that do not fit, prompts as in
    `read_prompt_set`, and where `out` is a store of other inputs (without `overwrite`), no store, or holds
    files that are not a store's.
    """
    # voting needs no full round of prompts
    sizes = dataclasses.replace(inputs.sizes, sequence=("gsb_dpo",))
    inputs = dataclasses.replace(inputs, sizes=sizes)
    read_prompt_set(inputs.prompts, sizes)
    about = {MADE_FROM: _digest(inputs)}
    if not _is_there(inputs.out, about, overwrite):
        make_rollouts(inputs.config, sizes, inputs.model, inputs.codec, inputs.prompts, inputs.out, about)
    return open_store(inputs.out)


def add_media(store: Path, codec: Path) -> int:
    """mp4 with sound of every clip of a store, for people to vote on; how many clips have one."""
    return write_media(open_store(store), codec, load_codecs(codec))


def check_nothing_foreign(folder: Path) -> None:
    """Raises ValueError where replacing the folder would lose files that a rollout did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder}: a file; give a folder for the rollouts")
    if foreign := _foreign(folder):
        raise ValueError(
            f"{folder}: holds {foreign}, which no rollout wrote, so it is not replaced; move it away or give "
            "another folder"
        )


def _is_there(folder: Path, about: Mapping[str, Any], overwrite: bool) -> bool:
    """True for a whole store of the same inputs. Raises ValueError where the folder must not be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir() or not (folder / META).is_file() or not (folder / INDEX).is_file():
        raise ValueError(f"{folder}: not empty and no rollout store; give another folder")
    if open_store(folder).facts.get(MADE_FROM) == about[MADE_FROM]:
        return True
    if not overwrite:
        raise ValueError(
            f"{folder}: a rollout store of another model, other prompts or settings; give another --to, or "
            "--overwrite to replace it"
        )
    check_nothing_foreign(folder)
    return False


def _foreign(folder: Path) -> str:
    """The first entry that is not of a rollout store, or ''; what a killed process left does not count."""
    clips = {f"{name}.mp4" for name in open_store(folder).places} if (folder / META).is_file() else set()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        ours = place.as_posix() in (INDEX, META, MEDIA, MARKER) or _SHARD.fullmatch(place.as_posix())
        if ours or (place.parent == Path(MEDIA) and path.name in clips) or path.name.endswith(".tmp"):
            continue
        return place.as_posix()
    return ""


def _digest(inputs: RolloutInputs) -> str:
    """Of all that the clips depend on. Raises ValueError where the model was trained with another codec."""
    described, codecs = model_config(inputs.model), load_codecs(inputs.codec)
    check_trained_on(codecs, inputs.codec, described, inputs.model)
    rows = read_prompts(inputs.prompts)
    attached = {path for row in rows for path in (row.image_path, *row.reference_paths) if path is not None}
    sizes, config = to_json(inputs.sizes), to_json(inputs.config)
    wanted = {
        "checkpoint": described.get("checkpoint_id", ""),
        "codec": codecs.codec_id,
        "prompts": digest(inputs.prompts),
        "attached": sorted(digest(path) for path in attached if path.is_file()),
        "config": {name: value for name, value in config.items() if name not in NEUTRAL},
        "sizes": {name: sizes[name] for name in _SIZES},
    }
    return f"{stable_hash(wanted):016x}"
