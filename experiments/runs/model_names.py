"""What models are called in MLflow: the registered name of a recipe's models, and the tags that identify a
model folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.runs.outputs import CHECKPOINT_TAG

CHECKPOINT, CODEC, ADAPTER = "checkpoint", "codec", "adapter"  # kinds of digests, KIND:ID
CODEC_TAG = "nava.codec_id"
TRAINED_ON_TAG = "nava.trained_on_codec"
PARENT_TAG = "nava.parent_checkpoint"
ADAPTER_TAG = "nava.adapter_id"
TAG_OF = {CHECKPOINT: CHECKPOINT_TAG, CODEC: CODEC_TAG, ADAPTER: ADAPTER_TAG}
# aliases: the newest pretrained, aligned and fine-tuned model, and the newest one whose evaluation passed all
# gates
PRETRAINED, ALIGNED, FINETUNED, BEST = "pretrained", "aligned", "finetuned", "best"
MAX_NAME = 200
_REFUSED = re.compile(r"[^A-Za-z0-9._-]+")
_OURS = re.compile(r"nava(?:[-_.]+(.+))?")


def registered_name(recipe: str) -> str:
    """The registered model of a recipe: nava-RECIPE; of one whose name begins with nava, that once.

    >>> registered_name("mini"), registered_name("nava_6b"), registered_name("my recipe")
    ('nava-mini', 'nava-6b', 'nava-my-recipe')
    """
    plain = _REFUSED.sub("-", recipe).strip("-._") or "model"
    ours = _OURS.fullmatch(plain)
    rest = ours[1] if ours else plain
    return f"nava-{rest}"[:MAX_NAME].rstrip("-._") if rest else "nava"


def codec_name(recipe: str) -> str:
    """The registered model of a recipe's codec."""
    return f"{registered_name(recipe)}-codec"


def model_tags(folder: Path) -> dict[str, str]:
    """Tags of a model folder: what its config.json says of checkpoint, codec, parent, stage and step."""
    facts = _facts(folder / "config.json")
    names = {
        CHECKPOINT_TAG: "checkpoint_id",
        TRAINED_ON_TAG: "codec_id",
        PARENT_TAG: "parent",
        "nava.model_stage": "stage",
        "nava.step": "step",
        "nava.flavor": "flavor",
    }
    return {tag: str(facts[name]) for tag, name in names.items() if facts.get(name) not in (None, "")}


def codec_tags(folder: Path) -> dict[str, str]:
    """Tags of a codec folder; a model's config.json names a codec as well, but no kind of one."""
    facts = _facts(folder / "config.json")
    return {CODEC_TAG: str(facts["codec_id"])} if facts.get("codec_id") and "kind" in facts else {}


def adapter_tags(folder: Path, merged: str) -> dict[str, str]:
    """Tags of an adapter folder. merged: checkpoint id of the model that it was merged into."""
    facts = _facts(folder / "adapter.json")
    found = {ADAPTER_TAG: facts.get("adapter_id"), PARENT_TAG: facts.get("base_id")}
    return {tag: str(value) for tag, value in found.items() if value} | {"nava.merged_checkpoint": merged}


def digest_of_model(folder: Path) -> str:
    """KIND:ID of a model, codec or adapter folder, or of the model in an output folder; "" if it is none."""
    for place in (folder, folder / "model"):
        facts = _facts(place / "config.json")
        if checkpoint := facts.get("checkpoint_id"):
            return f"{CHECKPOINT}:{checkpoint}"
        if (codec := facts.get("codec_id")) and "kind" in facts:
            return f"{CODEC}:{codec}"
    adapter = _facts(folder / "adapter.json").get("adapter_id")
    return f"{ADAPTER}:{adapter}" if adapter else ""


def identified(tags: Mapping[str, Any]) -> bool:
    """True if tags name a checkpoint, codec or adapter."""
    return any(tags.get(tag) for tag in TAG_OF.values())


def other_model(folder: Path, tags: Mapping[str, Any]) -> str:
    """Which model a folder has in place of the one that tags name, in one line; "" where it is that one, and
    where there is no folder."""
    expected = {kind: str(tags[tag]) for kind, tag in TAG_OF.items() if tags.get(tag)}
    if not expected or not folder.is_dir():
        return ""
    config, adapter = _facts(folder / "config.json"), _facts(folder / "adapter.json")
    ids = {
        CHECKPOINT: config.get("checkpoint_id"),
        CODEC: config.get("codec_id") if "kind" in config else "",
        ADAPTER: adapter.get("adapter_id"),
    }
    found = {kind: str(value) for kind, value in ids.items() if value}
    known = found.keys() & expected.keys()
    if known and all(found[kind] == expected[kind] for kind in known):
        return ""
    if not known and ADAPTER in found:  # those of earlier versions have the id of what they were merged into
        return ""
    lies = " ".join(f"{kind} {value}" for kind, value in found.items()) or "no model with an id"
    return f"{lies} in place of {' '.join(f'{kind} {value}' for kind, value in expected.items())}"


def _facts(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is none, as tracking fails no run."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
