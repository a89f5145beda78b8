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
from pretrain.prompt import PromptRow

# settings that say how the work is done, or that jobs and other entries already have
_NEUTRAL = ("device", "threads", "task", "negative_prompt", "seed", "seeds", "weights")
_SAID = {
    "model": "another model",
    "weights": "other weights of the model",
    "adapters": "other adapters",
    "codec": "another codec",
    "decoder": "another decoder of the codec (its weights, vocoder, iterations, precision or tiles)",
    "prompts": "other prompts, or other seeds, tasks or negative prompts of them",
    "chosen": "another choice among candidates",
    "parallel": "another number of ranks that share a clip",
}


# entries that earlier versions did not write, and what was not kept then; `asked` is in the digest of prompts
_LATER = {"decoder": "decoder_id", "asked": ""}
_ASKED = {"prompts": "prompts", "seeds": "seeds", "tasks": "tasks", "negative_prompts": "negative prompts"}
_SHOWN = 48  # characters of a value that many clips may have


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
    files = digests_of_files(jobs)
    decoder = {"decoder": codecs.decoder_id} if codecs.decoder_id else {}
    return {
        "model": described.facts["checkpoint_id"],
        "weights": config.weights,
        "adapters": marks.get("adapters", ""),
        "codec": codecs.codec_id,
        **decoder,
        "prompts": {"clips": len(jobs), "sha256": digest_of_jobs(jobs, files)},
        "asked": asked_of(jobs, files),
        "settings": {**settings, "device": device_of(config).type},
        "parallel": {"context": context},
    }


def digest_of_jobs(jobs: Sequence[ClipJob], files: Mapping[Path, str]) -> str:
    """Of names, seeds and rows, with the content of the files they name; not of where these lie.

    files: as of `digests_of_files`.
    """
    digest = hashlib.sha256()
    for job in jobs:
        row = job.row
        said = {
            **_given(row, files),
            "name": job.name,
            "seed": job.seed,
            "negative": row.negative.text if row.negative else "",
            "task": row.task or "",
        }
        digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def asked_of(jobs: Sequence[ClipJob], files: Mapping[Path, str]) -> dict[str, str]:
    """What a digest of all does not tell: prompts with their files and sizes apart from seeds, tasks and
    negative prompts, each in clear where all clips have the same."""
    rows = {job.row.data_id: job.row for job in jobs}
    given = json.dumps([_given(row, files) for row in rows.values()], sort_keys=True)
    return {
        "prompts": f"{len(rows)} ({hashlib.sha256(given.encode()).hexdigest()[:8]})",
        "seeds": _listed({job.name: str(job.seed) for job in jobs}),
        "tasks": _listed({name: str(row.task or "") for name, row in rows.items()}),
        "negative_prompts": _listed(
            {name: row.negative.text if row.negative else "" for name, row in rows.items()}
        ),
    }


def digests_of_files(jobs: Sequence[ClipJob]) -> dict[Path, str]:
    """sha256 of the first frames and voices of jobs, by path."""
    paths = {path for job in jobs for path in (job.row.image_path, *job.row.reference_paths) if path}
    return {path: sha256_of(path) for path in sorted(paths)}


def _given(row: PromptRow, files: Mapping[Path, str]) -> dict[str, Any]:
    return {
        "data_id": row.data_id,
        "prompt": row.prompt.text,
        "image": files[row.image_path] if row.image_path else "",
        "references": [files[path] if path else "" for path in row.reference_paths],
        "size": [row.num_frames, row.height, row.width],
        "meta": row.meta,
    }


def _listed(values: Mapping[str, str]) -> str:
    """The one value of all; of several, or a long one, the first and a digest of which has which."""
    distinct = sorted({value or "none" for value in values.values()}, key=lambda value: (len(value), value))
    shown = ", ".join(distinct)[:_SHOWN]
    if len(distinct) == 1 and shown == distinct[0]:
        return shown
    digest = hashlib.sha256(json.dumps(sorted(values.items())).encode()).hexdigest()
    return f"{shown} ({digest[:8]})"


def request_id(request: Mapping[str, Any]) -> str:
    """A digest of it, equal for equal requests."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


def same_as(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a folder's request is the one asked for, as far as the version that wrote it has kept."""
    known = {name: value for name, value in asked.items() if name in there or name not in _LATER}
    if "asked" not in there and there.get("adapters") == _rounded(str(known.get("adapters", ""))):
        known["adapters"] = there["adapters"]  # earlier versions kept 6 digits of a scale
    return there == known


def _rounded(adapters: str) -> str:
    pairs = (entry.rpartition("=") for entry in adapters.split())
    return " ".join(f"{id}={float(scale):g}" for id, _, scale in pairs)


def not_kept(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What an earlier version did not keep of its request, "" where it kept all."""
    return ", ".join(said for name, said in _LATER.items() if said and name in asked and name not in there)


def is_other_decoder(there: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """They differ in what decodes alone, so that the latents are the same."""
    return same_as({**there, "decoder": asked.get("decoder", "")}, asked)


def difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first difference of two requests in words, such as "another model (1f2e, asked for is 9a8b)"."""
    for name in (*_SAID, "settings"):
        found, wanted = there.get(name), asked.get(name)
        if found == wanted or (name in _LATER and name not in there):
            continue
        if name == "prompts" and (said := _other_asked(there.get("asked", {}), asked.get("asked", {}))):
            return said
        if name != "settings":
            return f"{_SAID[name]} ({_short(found)}, asked for is {_short(wanted)})"
        found, wanted = _flat(found or {}), _flat(wanted or {})
        changed = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        more = f" and {len(changed) - 1} more settings" if len(changed) > 1 else ""
        key = changed[0]
        return f"generate.{key} {_short(found.get(key))}, asked for is {_short(wanted.get(key))}{more}"
    return "something that this version does not know"


def _other_asked(there: Mapping[str, str], asked: Mapping[str, str]) -> str:
    """ "" where they are equal, or one of them is of a version that did not write it."""
    for name, what in _ASKED.items() if there and asked else ():
        if there.get(name) != asked.get(name):
            return f"other {what} ({there.get(name)}, asked for is {asked.get(name)})"
    return ""


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
