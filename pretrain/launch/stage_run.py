"""One resolved stage: what the launcher writes and every rank reads, and the checks without weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pretrain.config import from_json, to_json
from pretrain.files import read_json, write_json
from pretrain.launch.torchrun import IDENTITY, RESOLVED
from pretrain.model.flavors import flavor
from pretrain.recipe import PretrainConfig, recipe_hash
from pretrain.schedule import StageConfig
from pretrain.storage import check_reachable, is_file, place, remove_folder, writing

CHECKPOINTS = "checkpoint"


class RunIdentity(Protocol):
    """A training with a folder of its own."""

    @property
    def out(self) -> Path: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """Everything a rank needs. `trackers`: "package.module:factory" -> keyword arguments, built on rank 0."""

    config: PretrainConfig
    stage: str
    latents: Path  # holds a folder per data set
    out: Path
    codec_id: str = ""
    init_from: Path | None = None  # a model/ folder of an earlier stage
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Where the training states are, a folder step-N each."""
        folder = self.config.checkpoint.folder
        return place(folder) / self.stage if folder else self.out / CHECKPOINTS

    def save(self) -> Path:
        """Write out/resolved.json for the ranks; returns its path."""
        values = {
            "config": to_json(self.config),
            "stage": self.stage,
            "latents": str(self.latents),
            "out": str(self.out),
            "checkpoints": str(self.checkpoints),
            "codec_id": self.codec_id,
            "init_from": str(self.init_from) if self.init_from else None,
            "trackers": {name: dict(options) for name, options in self.trackers.items()},
        }
        path = self.out / RESOLVED
        write_json(path, values)
        return path

    @classmethod
    def load(cls, path: Path) -> StageRun:
        values = json.loads(path.read_text())
        init_from = values["init_from"]
        return cls(
            config=from_json(PretrainConfig, values["config"], "config"),
            stage=values["stage"],
            latents=place(values["latents"]),
            out=Path(values["out"]),
            codec_id=values["codec_id"],
            init_from=place(init_from) if init_from else None,
            trackers=values["trackers"],
        )

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its resumption."""
        return {
            "flavor": self.config.flavor,
            "args": dataclasses.asdict(flavor(self.config.flavor)),
            "stage": self.stage,
            "recipe_hash": recipe_hash(self.config, self.stage),
            "codec_id": self.codec_id,
            "parent": parent_id(self.init_from),
            "latents": digests_of_sets(self.latents, self.config.stage(self.stage)),
        }


def manifests_of_sets(latents: Path, stage: StageConfig) -> dict[str, dict[str, Any]]:
    """manifest.json of each of the stage's sets; a missing one is left out, and reported on opening."""
    paths = {name: latents / name / "manifest.json" for name in sorted({*stage.sets, *stage.audio_sets})}
    return {name: read_json(path, "run `nava encode` again") for name, path in paths.items() if is_file(path)}


def digests_of_sets(latents: Path, stage: StageConfig) -> dict[str, str]:
    """Checksum of each set's index."""
    return {
        name: str(manifest.get("index_sha256"))[:16]
        for name, manifest in manifests_of_sets(latents, stage).items()
    }


def parent_id(init_from: Path | None) -> str:
    """Id of the model a stage starts from; "" = from scratch."""
    return str(model_config(init_from)["checkpoint_id"]) if init_from else ""


def check_parent(run: StageRun) -> None:
    """Raises ValueError where `init_from` is no model folder, or one of another flavor or codec."""
    if run.init_from is None:
        return
    parent, where = model_config(run.init_from), run.init_from / "config.json"
    identity = run.identity()
    # a published checkpoint does not say which codec it was trained with: the latents' own decides
    published = parent.get("stage") == "import" and "codec_id" not in parent
    for name in ("flavor", "args") if published else ("flavor", "args", "codec_id"):
        if name not in parent or parent[name] != identity[name]:
            found = parent.get(name, "nothing")
            raise ValueError(
                f"{where}: {name} is {_difference(found, identity[name])}; start from a model of the same "
                f"{name}"
            )


def check_run_folder(run: RunIdentity) -> None:
    """Claim the run folder. Raises ValueError where it holds checkpoints of another run identity."""
    run.out.mkdir(parents=True, exist_ok=True)
    _claim(run.out, run.identity())


def check_checkpoints(run: StageRun) -> None:
    """Claim a remote checkpoint folder. Raises OSError if unreachable, ValueError if another run's."""
    if run.config.checkpoint.folder:
        check_reachable(run.checkpoints)
        _claim(run.checkpoints, run.identity())


def clear(out: Path) -> None:
    """Forget an earlier run in this folder."""
    remove_folder(out)


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    path = folder / IDENTITY
    if is_file(path):
        before = read_json(path, f"remove {folder} or train into another folder")
        for name, value in identity.items():
            if name not in before or before[name] != value:
                found = _difference(before.get(name, "nothing"), value)
                raise ValueError(
                    f"{path}: the checkpoints here are of another {name}: {found}; remove {folder} or train "
                    "into another folder"
                )
    write_json(path, identity, through=writing)


def model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises FileNotFoundError or ValueError in one line."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; give the model/ folder of a finished stage, or one of `nava import`"
        )
    return read_json(path, "train the earlier stage again or give another model")


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in wanted if key not in found or found[key] != wanted[key]]
        return ", ".join(f"{key} {found.get(key)!r} instead of {wanted[key]!r}" for key in keys[:3])
    return f"{found!r} instead of {wanted!r}"
