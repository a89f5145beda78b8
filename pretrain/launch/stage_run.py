"""One resolved stage: what the launcher writes and every rank reads, and the checks without weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pretrain.config import from_json, to_json
from pretrain.data.stream.sample_set import NO_PLACES, folder_of
from pretrain.files import read_json, write_json
from pretrain.launch.continuing import TrainingRun, Verdict, claim, recorded, refusal, write_record
from pretrain.launch.identity import Identity, difference, flat, split
from pretrain.launch.torchrun import RESOLVED
from pretrain.model.flavors import flavor
from pretrain.recipe import PretrainConfig, recipe_hash
from pretrain.schedule import StageConfig
from pretrain.storage import check_reachable, is_file, place

CHECKPOINTS = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """Everything a rank needs. `trackers`: "package.module:factory" -> keyword arguments, built on rank 0."""

    config: PretrainConfig
    stage: str
    latents: Path  # holds a folder per data set
    out: Path
    places: Mapping[str, str] = field(default_factory=dict)  # of sets that are elsewhere
    codec_id: str = ""
    init_from: Path | None = None  # a model/ folder of an earlier stage
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # digests of the code that runs, for a warning where it differs; not told to the ranks
    code: Mapping[str, str] = field(default_factory=dict)
    trash: Path | None = None  # gets what must make room; None = that of `pretrain.storage.trash_of`
    anyway: bool = False  # go on although settings or inputs that count differ; the record says so

    @property
    def label(self) -> str:
        return f"pretrain_{self.stage}"

    @property
    def checkpoints(self) -> Path:
        """Where the training states are, a folder step-N each."""
        return self.states_in(self.config.checkpoint.folder)

    def states_in(self, folder: str) -> Path:
        """Where the states are with this `checkpoint.folder`."""
        return place(folder) / self.stage if folder else self.out / CHECKPOINTS

    def save(self) -> Path:
        """Write out/resolved.json for the ranks; returns its path."""
        path = self.out / RESOLVED
        write_json(path, self.resolved())
        return path

    def resolved(self) -> dict[str, Any]:
        """What the ranks are told, as JSON."""
        return {
            "config": to_json(self.config),
            "stage": self.stage,
            "latents": str(self.latents),
            "places": dict(self.places),
            "out": str(self.out),
            "checkpoints": str(self.checkpoints),
            "codec_id": self.codec_id,
            "init_from": str(self.init_from) if self.init_from else None,
            "trackers": {name: dict(options) for name, options in self.trackers.items()},
        }

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(**cls.fields_of(json.loads(path.read_text())))

    @classmethod
    def fields_of(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of what `resolved` gave."""
        init_from = values["init_from"]
        return {
            "config": from_json(PretrainConfig, values["config"], "config"),
            "stage": values["stage"],
            "latents": place(values["latents"]),
            "places": values.get("places", {}),
            "out": Path(values["out"]),
            "codec_id": values["codec_id"],
            "init_from": place(init_from) if init_from else None,
            "trackers": values["trackers"],
        }

    def identity(self) -> dict[str, Any]:
        """Facts of the training that its model keeps."""
        return {
            "flavor": self.config.flavor,
            "args": flavor(self.config.flavor).as_facts(),
            "stage": self.stage,
            "recipe_hash": recipe_hash(self.config, self.stage),
            "codec_id": self.codec_id,
            "parent": parent_id(self.init_from),
            "latents": digests_of_sets(self.latents, self.config.stage(self.stage), self.places),
        }

    def depends(self) -> Identity:
        """All that the stage's weights depend on. Raises as `identity` does."""
        return self._identity(
            self.identity(), {"config": to_json(self.config), "stage": self.stage}, self.code
        )

    def depended(self, facts: Mapping[str, Any], resolved: Mapping[str, Any]) -> Identity:
        """That of a folder whose run.json has `identity` alone; its settings are in resolved.json."""
        if not resolved and facts.get("recipe_hash") == recipe_hash(self.config, self.stage):
            return dataclasses.replace(self.depends(), code={})
        return self._identity(facts, resolved, {})

    def _identity(
        self, facts: Mapping[str, Any], resolved: Mapping[str, Any], code: Mapping[str, str]
    ) -> Identity:
        config, stage = dict(resolved.get("config", {})), resolved.get("stage", "")
        config["stages"] = {stage: config["stages"][stage]} if stage in config.get("stages", {}) else {}
        own = {"stage": stage, "flavor": facts["flavor"], **flat(facts["args"], "model.")}
        settings, neutral = split({**flat(config), **own}, "pretrain")
        inputs = {"codec": str(facts["codec_id"]), **flat(facts["latents"], "latents.")}
        parents = {"model": str(facts["parent"])}
        return Identity(settings=settings, inputs=inputs, parents=parents, code=code, neutral=neutral)

    def extends(self, finished: bool) -> tuple[str, ...]:
        """Steps, and what shapes the learning rate at their end."""
        names = ("steps", "decay_fraction", "decay", "min_lr_factor")
        return tuple(f"stages.{self.stage}.{name}" for name in names)

    def past_end(self, length: int, only_length: bool) -> str:
        """What becomes of the learning rate, whose schedule is a function of the number of steps."""
        stage = self.config.stage(self.stage)
        if only_length and not stage.decay_fraction:
            return "its learning rate does not decay, so this is what a run of that length gives"
        return (
            f"what is trained keeps the learning rates of {length} steps, the rest follows the schedule of "
            f"{stage.steps}, so a run of that length from the start gives other weights"
        )


def manifests_of_sets(
    latents: Path, stage: StageConfig, places: Mapping[str, str] = NO_PLACES
) -> dict[str, dict[str, Any]]:
    """manifest.json of each of the stage's sets; a missing one is left out, and reported on opening."""
    names = sorted({*stage.sets, *stage.audio_sets})
    paths = {name: folder_of(latents, name, places) / "manifest.json" for name in names}
    return {name: read_json(path, "run `nava encode` again") for name, path in paths.items() if is_file(path)}


def digests_of_sets(
    latents: Path, stage: StageConfig, places: Mapping[str, str] = NO_PLACES
) -> dict[str, str]:
    """Checksum of each set's index."""
    return {
        name: str(manifest.get("index_sha256"))[:16]
        for name, manifest in manifests_of_sets(latents, stage, places).items()
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


def check_run_folder(run: TrainingRun) -> Verdict:
    """Claim the run's folder. Raises ValueError where it holds another training, as `continuing.claim`."""
    run.out.mkdir(parents=True, exist_ok=True)
    return claim(run)


def check_checkpoints(run: StageRun) -> None:
    """Claim a checkpoint folder elsewhere. Raises OSError if unreachable, ValueError if another run's."""
    if not run.config.checkpoint.folder:
        return
    check_reachable(run.checkpoints)
    before = recorded(run.checkpoints, run)
    changes = difference(before, run.depends()) if before else []
    if changes and not run.anyway and not {change.field for change in changes} <= set(run.extends(False)):
        verdict = Verdict("refuse", counting=tuple(changes))
        raise ValueError(
            refusal(verdict, run.checkpoints, "give another checkpoint.folder, or move this away")
        )
    write_record(run.checkpoints, run, Verdict("resume", counting=tuple(changes)))


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
