"""A fully resolved alignment run, written by the launcher and read by every rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune.adapters import read_adapter
from finetune.recipe import AlignConfig
from pretrain.config import from_json, to_json
from pretrain.files import write_json
from pretrain.launch.stage_run import model_config
from pretrain.launch.torchrun import RESOLVED
from pretrain.randomness import stable_hash

BaseWeights = Literal["ema", "model"]
CHANGES_NOTHING = ("checkpoint_every", "keep_last", "samples")


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

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its resumption."""
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

    def recipe_hash(self) -> str:
        """Identity of what is trained: the config without unused phases and fields that change no weight."""
        fields = to_json(self.config)
        for name in self.config.phases.keys() - {each.name for each in self.config.objectives()}:
            del fields[name]
        for name in CHANGES_NOTHING:
            del fields[name]
        return f"{stable_hash({**fields, 'staleness': self.staleness} if self.staleness else fields):016x}"


def digest(path: Path) -> str:
    """sha256 of a file. Raises FileNotFoundError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a JSONL file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
