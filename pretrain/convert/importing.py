"""Imports a published checkpoint into a model folder, tensor by tensor, with its source recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.config import nearest
from pretrain.convert.account import Account, account, sizes_of
from pretrain.convert.fp8 import Fp8Reader
from pretrain.convert.layouts import COMPUTED, AudioFrom, AudioSuffix, WeightLayout, detect, rules
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import CONFIG, read_model_folder, write_model
from pretrain.model.flavors import FLAVORS, flavor
from pretrain.model.initial import drawn
from pretrain.model.shard_writer import SHARD_BYTES
from pretrain.owned import resolved_folder
from pretrain.storage import holds_work, is_file, is_remote, remove_leftovers

Kind = Literal["nava", "wan2.2"]
StoredAs = Literal["source", "fp32", "bf16"]
KINDS: dict[Kind, tuple[WeightLayout, ...]] = {"nava": ("nava",), "wan2.2": ("wan", "wan_diffusers")}
_SIDES = ("fresh", "copy")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_STORED: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Options of an import. Raises ValueError on unknown names."""

    kind: Kind
    flavor: str = "nava_6b_published"
    stored_as: StoredAs = "source"
    audio_from: AudioFrom = "fresh"  # of a warm start: the audio side of the alignment blocks
    seed: int = 0  # of what starts fresh

    def __post_init__(self) -> None:
        flavor(self.flavor)
        choices = {
            "layout": (self.kind, KINDS),
            "dtype": (self.stored_as, ("source", *_STORED)),
            "audio-from": (self.audio_from, _SIDES),
        }
        for name, (value, valid) in choices.items():
            if value not in valid:
                raise ValueError(f"unknown {name} {value!r}; {nearest(str(value), valid)}")
        if self.kind == "nava" and self.audio_from == "copy":
            raise ValueError("--audio-from copy is for wan2.2; NAVA.safetensors has the audio side itself")


@dataclass(frozen=True)
class Planned:
    """A checked import: nothing is written yet."""

    config: ImportConfig
    reader: Fp8Reader
    layout: WeightLayout
    suffix: AudioSuffix
    args: ModelArgs
    account: Account


def plan_import(config: ImportConfig, path: Path) -> Planned:
    """Check a checkpoint against the flavor by its headers alone.

    Raises FileNotFoundError or ValueError in one line: not a checkpoint, truncated, of another layout or
    size, with keys too many or too few, or a flavor that computes something else than the published weights
    were trained for.
    """
    args = flavor(config.flavor)
    reader = Fp8Reader(path)
    layout, suffix = detect(reader.keys(), str(path))
    if layout not in KINDS[config.kind]:
        other = next(kind for kind, layouts in KINDS.items() if layout in layouts)
        raise ValueError(f"{path}: has the layout {layout}; use `nava import {other}`")
    if config.kind == "nava":
        check_published(args, config.flavor)
    for key in reader.keys():  # noqa: SIM118
        if reader.dtype(key) not in _FLOATS:
            raise ValueError(
                f"{path}: {key} is {reader.dtype(key)}; give a checkpoint in fp32, bf16, fp16 or fp8, "
                "not another quantised one"
            )
    sizes = sizes_of(args)
    some = rules(layout, args, sizes.shapes, suffix, config.audio_from)
    return Planned(config, reader, layout, suffix, args, account(some, sizes, reader.shapes(), str(path)))


def check_published(args: ModelArgs, name: str) -> None:
    """Raises ValueError where these sizes would not compute what the published weights were trained for."""
    for field, value in COMPUTED["nava"].items():
        if getattr(args, field) != value:
            twin = f"{name}_published"
            advice = f"use --flavor {twin}" if twin in FLAVORS else "use a flavor of that kind"
            raise ValueError(
                f"flavor {name}: {field} is {getattr(args, field)}, the published weights need {value}; "
                f"{advice}"
            )


class Converted:
    """A TensorSource in our layout over a checkpoint in theirs."""

    def __init__(self, planned: Planned) -> None:
        self.reader, self.seed = planned.reader, planned.config.seed
        self.rules = {rule.ours: rule for rule in planned.account.rules}
        self.sizes, self.stored = planned.account.sizes, _STORED.get(planned.config.stored_as)
        self.usual = _usual_dtype(planned.reader)

    def keys(self) -> Collection[str]:
        return self.rules.keys()

    def shape(self, key: str) -> torch.Size:
        return self.sizes.shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """The source's dtype unless another was requested; rows of several types get one that holds all."""
        theirs = self.rules[key].theirs
        if self.stored or not theirs:
            return self.stored or self.usual
        found = {self.reader.dtype(name) for name in theirs}
        return found.pop() if len(found) == 1 else torch.float32

    def tensor(self, key: str) -> Tensor:
        theirs, dtype = self.rules[key].theirs, self.dtype(key)
        if not theirs:
            return drawn(self.sizes.first[key], self.shape(key), self.seed).to(dtype)
        parts = [self.reader.tensor(name).to(dtype) for name in theirs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def run_import(
    planned: Planned, to: Path, digests: Mapping[str, str] | None = None, max_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write the model folder atomically; returns its facts with checkpoint_id. Raises ValueError or OSError.

    digests: sha256 of the source's files by name, where they are known already.
    """
    to = to if is_remote(to) else resolved_folder(to)
    check_destination(to)
    existed = not is_remote(to) and to.exists()
    remove_leftovers(to)
    source = {
        "layout": planned.layout,
        "audio_suffix": planned.suffix,
        "name": planned.reader.path.name,
        "sha256": dict(digests or planned.reader.sha256()),
        **_dtypes(planned),
        "ignored": dict(planned.account.ignored),
    }
    facts = {
        "stage": "import",
        "kind": planned.config.kind,
        "step": 0,
        "ema_updates": 0,
        "ema_is_model": True,
        "source": source,
    }
    if planned.config.kind == "wan2.2":
        facts |= {"audio_from": planned.config.audio_from, "seed": planned.config.seed}
    try:
        name = planned.config.flavor
        source_in_ours = Converted(planned)
        checkpoint_id = write_model(
            to, name, planned.args, {"model": source_in_ours}, facts, keep_dtype=True, max_bytes=max_bytes
        )
    except BaseException:
        if not is_remote(to) and not existed:
            with suppress(OSError):  # somebody put something into it
                to.rmdir()
        raise
    return {**facts, "flavor": name, "checkpoint_id": checkpoint_id}


def check_destination(to: Path) -> None:
    """Raises ValueError where something else than an earlier import would be replaced."""
    to = to if is_remote(to) else resolved_folder(to)
    if is_file(to):
        raise ValueError(f"{to}: is a file; give a folder for the model")
    if not holds_work(to):
        return
    if not is_file(to / CONFIG) or read_model_folder(to).facts.get("stage") != "import":
        raise ValueError(f"{to}: not empty and not an earlier import; give another folder")


def _usual_dtype(reader: Fp8Reader) -> torch.dtype:
    return Counter(reader.dtype(key) for key in reader.keys()).most_common(1)[0][0]  # noqa: SIM118


def _dtypes(planned: Planned) -> dict[str, Any]:
    """What the source's tensors were stored as: the usual type, and the keys that differ."""
    reader, usual = planned.reader, _usual_dtype(planned.reader)
    kept = [key for key in reader.keys() if key not in planned.account.ignored]  # noqa: SIM118
    others = {key: _name(reader.dtype(key)) for key in kept if reader.dtype(key) != usual}
    fp8 = {"fp8": {"weights": len(reader.eighths), "scaled": len(reader.scales)}} if reader.eighths else {}
    return {"dtype": _name(usual), "other_dtypes": others, **fp8}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
