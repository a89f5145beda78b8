"""What a folder of clips is made with: model, adapters, codec, settings and prompts, by digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.codecs.base import Codecs
from pretrain.config import to_json
from pretrain.files import sha256_of
from pretrain.generation.config import GenerateConfig, device_of
from pretrain.generation.jobs import ClipJob
from pretrain.model.checkpoint import ModelFolder

# settings that say how the work is done, or that jobs and other entries already have
_NEUTRAL = ("device", "threads", "task", "negative_prompt", "seed", "seeds", "weights")
_SAID = {
    "model": "another model",
    "weights": "other weights of the model",
    "adapters": "other adapters",
    "codec": "another codec",
    "decoder": "another decoder of the codec (its weights, vocoder, iterations, precision or tiles)",
    "prompts": "other prompts",
    "chosen": "another choice among candidates",
    "parallel": "another number of ranks that share a clip",
}


_LATER = {"decoder": "decoder_id"}  # entries that earlier versions did not write, by what they are called


def made_with(
    described: ModelFolder,
    codecs: Codecs,
    marks: Mapping[str, str],
    config: GenerateConfig,
    jobs: Sequence[ClipJob],
    context: int = 1,
) -> dict[str, Any]:
    """All that the clips depend on, but for the number of threads and the kind of processor.

    marks: of the change of the model; context: ranks that hold the tokens of one clip together.
    """
    settings = {name: value for name, value in to_json(config).items() if name not in _NEUTRAL}
    decoder = {"decoder": codecs.decoder_id} if codecs.decoder_id else {}
    return {
        "model": described.facts["checkpoint_id"],
        "weights": config.weights,
        "adapters": marks.get("adapters", ""),
        "codec": codecs.codec_id,
        **decoder,
        "prompts": {"clips": len(jobs), "sha256": digest_of_jobs(jobs)},
        "settings": {**settings, "device": device_of(config).type},
        "parallel": {"context": context},
    }


def digest_of_jobs(jobs: Sequence[ClipJob]) -> str:
    """Of names, seeds and rows, with the content of the files they name; not of where these lie."""
    files: dict[Path, str] = {}
    digest = hashlib.sha256()
    for job in jobs:
        row = job.row
        for path in (row.image_path, *row.reference_paths):
            if path is not None and path not in files:
                files[path] = sha256_of(path)
        said = {
            "name": job.name,
            "seed": job.seed,
            "data_id": row.data_id,
            "prompt": row.prompt.text,
            "negative": row.negative.text if row.negative else "",
            "task": row.task or "",
            "image": files[row.image_path] if row.image_path else "",
            "references": [files[path] if path else "" for path in row.reference_paths],
            "size": [row.num_frames, row.height, row.width],
            "meta": row.meta,
        }
        digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def request_id(request: Mapping[str, Any]) -> str:
    """A digest of it, equal for equal requests."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


def same_as(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a folder's request is the one asked for, as far as the version that wrote it has kept."""
    return there == {name: value for name, value in asked.items() if name in there or name not in _LATER}


def not_kept(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What an earlier version did not keep of its request, "" where it kept all."""
    return ", ".join(said for name, said in _LATER.items() if name in asked and name not in there)


def is_other_decoder(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """They differ in what decodes alone, so that the latents are the same."""
    return same_as({**there, "decoder": asked.get("decoder", "")}, asked)


def difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first difference of two requests in words, such as "another model (1f2e, asked for is 9a8b)"."""
    for name in (*_SAID, "settings"):
        found, wanted = there.get(name), asked.get(name)
        if found == wanted or (name in _LATER and name not in there):
            continue
        if name != "settings":
            return f"{_SAID[name]} ({_short(found)}, asked for is {_short(wanted)})"
        found, wanted = _flat(found or {}), _flat(wanted or {})
        changed = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        more = f" and {len(changed) - 1} more settings" if len(changed) > 1 else ""
        key = changed[0]
        return f"generate.{key} {_short(found.get(key))}, asked for is {_short(wanted.get(key))}{more}"
    return "something that this version does not know"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return "none" if value in (None, "") else str(value)[:16]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
