"""What the inputs of a run are: profiles of corpora, prompt sets, encoded sets, rollout stores and votes, and
the models among them. All of it is small and bounded, since a run waits for it when it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from experiments.runs.dataset_rows import MAX_NAMES, Budget, profile_of_rows
from experiments.runs.inputs import CHECKPOINT, is_code_input
from experiments.runs.model_names import digest_of_model

MAX_PROFILE = 60_000  # characters of JSON; MLflow's column takes 64 KiB
MAX_FILES = 100_000  # of a folder of media that are counted
MAX_JSON = 4 << 20  # bytes of a summary
MEDIA = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".wav", ".flac", ".mp3", ".m4a", ".png", ".jpg", ".jpeg")
INDEX = "index.jsonl"


def about_inputs(inputs: Mapping[str, str], root: Path) -> dict[str, Any]:
    """Of a run's inputs (path -> digest): `datasets`, path -> {profile, schema}; `models`, path -> KIND:ID.

    Of generated clips the model is named that made them, as scoring them measures it. What cannot be read is
    left out: a description stops no run.
    """
    budget, datasets, models = Budget(), {}, {}
    for path, digest in inputs.items():
        place = root / path
        if is_code_input(path) or "://" in path:
            continue
        if model := (digest if digest.startswith(CHECKPOINT) else digest_of_model(place)):
            models[path] = model
            continue
        if found := described(place, budget):
            datasets[path] = found
    made_by = {f"{path} (clips)": made for path in datasets if (made := _maker_of_clips(root / path))}
    return {"datasets": datasets, "models": models | made_by}


def described(path: Path, budget: Budget | None = None) -> dict[str, Any]:
    """{profile, schema} of a file or folder of data; empty where it is neither, or cannot be read.

    profile: {kind, num_rows, ...} with counts of what the kind has; `uncounted` says why there are none.
    schema: of JSONL, columns as MLflow's [{name, type}].
    """
    budget = budget or Budget()
    try:
        found = _file(path, budget) if path.is_file() else _folder(path, budget) if path.is_dir() else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return _limited(found)


def _file(path: Path, budget: Budget) -> dict[str, Any]:
    if path.suffix == ".jsonl":
        return profile_of_rows(path, budget)
    return {"profile": {"kind": path.suffix.removeprefix(".") or "file", "bytes": path.stat().st_size}}


def _folder(path: Path, budget: Budget) -> dict[str, Any]:
    """By the file that tells what a folder is."""
    for name, describe in (
        ("manifest.json", _encoded_set),
        ("store.json", _rollout_store),
        ("summary.json", _corpus),
    ):
        content = _json(path / name)
        if content and (profile := describe(path, content, budget)):
            return {"profile": profile}
    if (path / INDEX).is_file():
        return profile_of_rows(path / INDEX, budget)
    return {"profile": profile} if (profile := _parts(path, budget)) else {}


def _encoded_set(path: Path, manifest: Mapping[str, Any], _: Budget) -> dict[str, Any]:
    if "shards" not in manifest or "samples" not in manifest:
        return {}
    shards = manifest["shards"].values()
    return {
        "kind": "encoded set",
        "num_rows": manifest["samples"],
        "shards": len(shards),
        "bytes": sum(shard.get("bytes", 0) for shard in shards),
        "codec_id": manifest.get("codec_id", ""),
        "latent_dtype": manifest.get("latent_dtype", ""),
        "rejected": manifest.get("num_rejected", 0),
    }


def _rollout_store(path: Path, facts: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        return {}
    names = ("checkpoint_id", "codec_id", "weights", "seed", "clips_per_prompt")
    rows = profile_of_rows(path / INDEX, budget)["profile"]
    return {**rows, "kind": "rollout store", **{name: facts[name] for name in names if name in facts}}


def _corpus(path: Path, summary: Mapping[str, Any], _: Budget) -> dict[str, Any]:
    """A corpus of ours; a folder of votes has a summary as well, which is no such one."""
    sets = summary.get("sets")
    if not isinstance(sets, Mapping):
        return {}
    return {
        "kind": "corpus",
        "num_rows": sum(one.get("rows", 0) for one in sets.values()),
        "hours": round(sum(one.get("seconds", 0.0) for one in sets.values()) / 3600, 4),
        "sets": {
            name: {"rows": one.get("rows", 0), "hours": round(one.get("seconds", 0.0) / 3600, 4)}
            for name, one in islice(sets.items(), MAX_NAMES)
        },
        "prompts": dict(islice(summary.get("prompts", {}).items(), MAX_NAMES)),
        "speakers": len(summary.get("voices", ())),
        "words": len(summary.get("words", ())),
    }


def _parts(path: Path, budget: Budget) -> dict[str, Any]:
    """A folder of sets, of JSONL files, or of media."""
    entries = sorted(islice(path.iterdir(), MAX_FILES))
    below = [entry for entry in entries if entry.is_dir()]
    sets = {entry.name: _folder(entry, budget) for entry in below[:MAX_NAMES] if _is_set(entry)}
    files = {entry.name: _file(entry, budget) for entry in entries if entry.suffix == ".jsonl"}
    parts = {name: found["profile"] for name, found in {**sets, **files}.items() if found}
    if parts:
        main = parts.get(f"{path.name}.jsonl")  # such as out/votes/votes.jsonl
        rows = [part.get("num_rows") for part in ([main] if main else parts.values())]
        counted = {"num_rows": sum(rows)} if all(isinstance(count, int) for count in rows) else {}
        return {"kind": main["kind"] if main else "sets", **counted, "sets": parts}
    media = [entry for entry in entries if entry.suffix.lower() in MEDIA]
    if not media:
        return {}
    counts: dict[str, int] = {}
    for entry in media:
        counts[entry.suffix.lower()] = counts.get(entry.suffix.lower(), 0) + 1
    more = {"uncounted": f"files after the first {MAX_FILES}"} if len(entries) == MAX_FILES else {}
    return {"kind": "media", "num_rows": len(media), "files": counts, **more}


def _is_set(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("manifest.json", "store.json", INDEX))


def _maker_of_clips(folder: Path) -> str:
    """KIND:ID of the model that made generated clips, by the mark in the first of them; "" elsewhere."""
    clip = next(_generated(folder), None)
    if clip is None:
        return ""
    from pretrain.media.read import read_metadata

    try:
        checkpoint = read_metadata(clip).get("checkpoint_id", "")
    except Exception:  # a clip that cannot be read is its reader's to refuse
        return ""
    return f"{CHECKPOINT}{checkpoint}" if checkpoint else ""


def _generated(folder: Path) -> Iterator[Path]:
    """The first clip of each folder with an index of `nava generate`, at or right below `folder`."""
    if not folder.is_dir():
        return
    for place in (folder, *sorted(islice(folder.iterdir(), MAX_NAMES))):
        if (place / INDEX).is_file():
            yield from islice(place.glob("*.mp4"), 1)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or a very large one."""
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _limited(found: dict[str, Any]) -> dict[str, Any]:
    """With a profile that MLflow takes: the parts of sets are left out where they are too long."""
    profile = found.get("profile", {})
    if len(json.dumps(profile)) > MAX_PROFILE:
        short = {name: value for name, value in profile.items() if isinstance(value, (int, float))}
        found = {**found, "profile": {"kind": profile.get("kind", ""), **short, "shortened": True}}
    return found
