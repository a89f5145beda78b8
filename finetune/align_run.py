"""A fully resolved alignment run, written by the launcher and read by every rank."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune.adapters import read_adapter
from finetune.objectives.registry import default_phases, objective_type
from finetune.recipe import AlignConfig, RubricConfig
from finetune.rollout_store import INDEX
from pretrain.config import from_json, to_json
from pretrain.files import read_json, sha256_of, write_json
from pretrain.launch.identity import SPEED_OPTIONS, Identity, flat, split
from pretrain.launch.stage_run import model_config
from pretrain.launch.torchrun import RESOLVED
from pretrain.randomness import stable_hash

BaseWeights = Literal["ema", "model"]
CHECKPOINTS = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class AlignRun:
    """Inputs of every rank.

    `scorer` is ("package.module:factory", keyword arguments), built on every rank; `trackers` likewise,
    called on rank 0.
    """

    config: AlignConfig
    base: Path  # a model/ folder
    codec: Path
    prompts: Path  # JSONL of training prompts
    held_out: Path | None = None  # JSONL of the held-out prompts, None = drawn from `prompts`
    # adapter folder of this very base and `weights` to start from, with its LoraConfig; None = a fresh one
    adapter: Path | None = None
    scorer: tuple[str, Mapping[str, Any]]
    out: Path
    weights: BaseWeights = "ema"
    pairs: Path | None = None  # pairs.jsonl, for an objective that needs preference pairs
    clips: Path | None = None  # the rollout store with the clips of those pairs
    # JSON with the data_ids of the prompts to train on, None = all that are not held out
    chosen: Path | None = None
    trackers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    staleness: int = 0  # rounds that the weights of rollouts are behind; local ranks have none
    # digests of the code that runs, for a warning where it differs; not told to the ranks
    code: Mapping[str, str] = field(default_factory=dict)
    trash: Path | None = None  # gets what must make room; None = that of `pretrain.storage.trash_of`
    anyway: bool = False  # go on although settings or inputs that count differ; the record says so

    _PATHS = ("base", "codec", "prompts", "out", "held_out", "adapter", "pairs", "clips", "chosen")

    def save(self) -> Path:
        """Write out/resolved.json for the ranks; returns its path."""
        paths = {name: str(path.absolute()) if (path := getattr(self, name)) else "" for name in self._PATHS}
        path = self.out / RESOLVED
        write_json(
            path,
            {
                "config": to_json(self.config),
                "scorer": [self.scorer[0], dict(self.scorer[1])],
                "weights": self.weights,
                "staleness": self.staleness,
                "trackers": {name: dict(options) for name, options in self.trackers.items()},
                **paths,
            },
        )
        return path

    @classmethod
    def load(cls, path: Path) -> AlignRun:
        values = json.loads(path.read_text())
        # held_out and adapter are not in files of earlier versions
        paths = {name: Path(values[name]) if values.get(name) else None for name in cls._PATHS}
        return cls(
            config=from_json(AlignConfig, values["config"], "config"),
            scorer=(values["scorer"][0], values["scorer"][1]),
            weights=values["weights"],
            trackers=values["trackers"],
            staleness=values["staleness"],
            **paths,  # type: ignore[arg-type]
        )

    @property
    def label(self) -> str:
        return "align"

    @property
    def checkpoints(self) -> Path:
        """Where the states between rounds are, a folder step-N each."""
        return self.out / CHECKPOINTS

    def states_in(self, folder: str) -> Path:
        """The same, as an alignment has no other place for them."""
        return self.checkpoints

    def identity(self) -> dict[str, Any]:
        """Facts of the alignment that its model keeps, and what identifies its inputs."""
        parent = model_config(self.base)
        name, options = self.scorer
        return {
            "flavor": parent["flavor"],
            "args": parent["args"],
            "stage": "align",
            "recipe_hash": self.recipe_hash(),
            "codec_id": parent.get("codec_id", ""),
            "parent": f"{parent['checkpoint_id']} ({self.weights})",
            "prompts": digest(self.prompts),
            "held_out": digest(self.held_out) if self.held_out else "",
            "adapter": read_adapter(self.adapter)[0].adapter_id if self.adapter else "",
            "scorer": f"{stable_hash(name, json.dumps(dict(options), sort_keys=True, default=str)):016x}",
            "pairs": digest(self.pairs) if self.pairs else "",
            "chosen": digest(self.chosen) if self.chosen else "",
        }

    def depends(self) -> Identity:
        """All that the aligned weights depend on. Raises as `identity` does."""
        resolved = {"config": to_json(self.config), "scorer": self.scorer, "staleness": self.staleness}
        clips = {"clips": digest(self.clips / INDEX)} if self.clips else {}
        return self._identity({**self.identity(), **clips}, resolved, self.code)

    def depended(self, facts: Mapping[str, Any], resolved: Mapping[str, Any]) -> Identity:
        """That of a folder whose run.json has `identity` alone; its settings are in resolved.json."""
        if not resolved and facts.get("recipe_hash") == self.recipe_hash():
            return dataclasses.replace(self.depends(), code={})
        return self._identity(facts, resolved, {})

    def _identity(
        self, facts: Mapping[str, Any], resolved: Mapping[str, Any], code: Mapping[str, str]
    ) -> Identity:
        config = used_settings(resolved.get("config", {}))
        scorer, options = resolved.get("scorer", ("", {}))
        own = {"scorer": scorer, "staleness": resolved.get("staleness", 0)}
        own |= {f"scorer.{name}": by_content(value) for name, value in flat(options).items()}
        settings, neutral = split({**flat(config), **own}, "align")
        names = ("prompts", "held_out", "adapter", "pairs", "clips", "chosen")
        inputs = {name: str(facts[name]) for name in names if name in facts}
        return Identity(
            settings=settings,
            inputs={**inputs, "codec": str(facts["codec_id"])},
            parents={"model": str(facts["parent"])},
            code=code,
            neutral=neutral,
        )

    def extends(self, finished: bool) -> tuple[str, ...]:
        """Rounds of the last phase, while it is not over: a new alignment can start from its adapter."""
        return () if finished else (f"{self.config.objectives()[-1].name}.rounds",)

    def past_end(self, length: int, only_length: bool) -> str:
        return "rounds have no schedule, so this is what a run of that length gives"

    def recipe_hash(self) -> str:
        """Hash of the settings that count: without unused phases, and neutral fields
        (`pretrain.launch.identity.NEUTRAL`) left out or at their defaults."""
        fields = used_settings(to_json(self.config))
        for name in ("checkpoint_every", "keep_last", "samples"):
            del fields[name]
        fields["reward_options"] = {
            reward: {name: value for name, value in options.items() if name not in SPEED_OPTIONS}
            for reward, options in fields["reward_options"].items()
        }
        fields |= {"parallel": to_json(AlignConfig().parallel)}
        fields |= {name: getattr(AlignConfig, name) for name in ("max_flat_rounds", "max_skips")}
        fields["rubric"] = {**fields["rubric"], "allow_prompt_blind": RubricConfig.allow_prompt_blind}
        for name in {each.name for each in self.config.objectives()}:
            phase = type(self.config.phases[name])
            sizes = {"micro_batch": phase.micro_batch, "rollout_batch": phase.rollout_batch}
            fields[name] = {**fields[name], **sizes}
        return f"{stable_hash({**fields, 'staleness': self.staleness} if self.staleness else fields):016x}"


def used_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """An AlignConfig as JSON without the sections of objectives that its sequence does not run."""
    sequence = tuple(config.get("sequence", ()))
    unused = default_phases(sequence).keys() - {objective_type(entry).name for entry in sequence}
    return {name: value for name, value in config.items() if name not in unused}


def by_content(value: Any) -> Any:
    """The value, a path by what lies there: the id that a codec or model carries, else a digest of the
    files. So an input that moves, or a clone elsewhere, is no difference."""
    if not isinstance(value, str) or os.sep not in value:
        return value
    path = Path(value)
    if path.is_file():
        return sha256_of(path)[:16]
    if not path.is_dir():
        return path.name if path.is_absolute() else value
    described = read_json(path / "config.json", "restore it") if (path / "config.json").is_file() else {}
    if found := described.get("codec_id", described.get("checkpoint_id")):
        return str(found)
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return f"{stable_hash(*((str(file.relative_to(path)), sha256_of(file)) for file in files)):016x}"


def digest(path: Path) -> str:
    """sha256 of a file. Raises FileNotFoundError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a JSONL file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
