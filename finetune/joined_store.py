"""One rollout store out of several models' stores, so that votes between models can train."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.gsb.names import folded_name
from finetune.rollout_store import INDEX, META, RolloutStore, open_store
from pretrain.files import sha256_of, write_json
from pretrain.jsonl import dump
from pretrain.owned import owned_folder
from pretrain.prompt.names import name_problem

JOINED = "gsb join"  # whose folders are replaced
MEDIA = "media"
MODELS = "checkpoint_ids"  # fact of a joined store: model -> id of its checkpoint


def join_stores(sources: Sequence[tuple[str, Path]], out: Path, clips_per_prompt: int = 1) -> RolloutStore:
    """Replace `out` by a store of the first clips of each prompt that all of (model, store) have.

    A clip is called PROMPT-MODEL, its row's `model` is MODEL; with several clips per prompt MODEL#0, MODEL#1
    ... Latents and mp4 files are copied as they are. Raises ValueError for stores of different codecs, frame
    rates or prompts, a model named twice, and too few clips; FileNotFoundError for what is no store.
    """
    names = [folded_name(model) for model, _ in sources]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"expected two or more models with names of their own, got {', '.join(names)}")
    for name in names:
        if problem := name_problem(name):
            raise ValueError(f"model {name!r}: {problem}")
    stores = [open_store(path) for _, path in sources]
    _check_alike(stores)
    clips = [_by_case(store) for store in stores]
    cases = [case for case in clips[0] if all(case in other for other in clips)]
    if not cases:
        raise ValueError(
            f"{stores[0].folder} and {stores[1].folder}: no prompt in common; roll out the same prompts file"
        )
    _check_cases(stores, clips, cases, clips_per_prompt)
    with owned_folder(out, JOINED) as partial:
        rows: list[dict[str, Any]] = []
        for name, store, of_store in zip(names, stores, clips, strict=True):
            chosen = [(case, k) for case in cases for k in range(clips_per_prompt)]
            wanted = {of_store[case][k]: _named(name, k, clips_per_prompt) for case, k in chosen}
            rows += _copied(store, wanted, partial)
        dump(partial / INDEX, rows)
        digest = sha256_of(partial / INDEX)
        rates = {key: stores[0].facts[key] for key in ("video_hz", "audio_hz")}
        made_by = {
            name: store.facts.get("checkpoint_id", "") for name, store in zip(names, stores, strict=True)
        }
        known = {"codec_id": stores[0].facts["codec_id"]} if "codec_id" in stores[0].facts else {}
        write_json(partial / META, {**known, MODELS: made_by, "rows": digest, **rates})
    return open_store(out)


def _named(model: str, k: int, of: int) -> str:
    return f"{model}#{k}" if of > 1 else model


def _by_case(store: RolloutStore) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for clip, row in store.places.items():
        found.setdefault(row["case_id"], []).append(clip)
    return found


def _check_alike(stores: Sequence[RolloutStore]) -> None:
    first = stores[0]
    for other in stores[1:]:
        for key in ("codec_id", "video_hz", "audio_hz"):
            if first.facts.get(key) != other.facts.get(key):
                raise ValueError(
                    f"{other.folder}: {key} {other.facts.get(key)}, but {first.folder} has "
                    f"{first.facts.get(key)}; roll out both with one codec and length"
                )


def _check_cases(
    stores: Sequence[RolloutStore],
    clips: Sequence[Mapping[str, Sequence[str]]],
    cases: Sequence[str],
    clips_per_prompt: int,
) -> None:
    for store, of_store in zip(stores, clips, strict=True):
        for case in cases:
            if len(of_store[case]) < clips_per_prompt:
                raise ValueError(
                    f"{store.folder}: {len(of_store[case])} clips of {case!r}, {clips_per_prompt} are wanted"
                )
            prompt = store.places[of_store[case][0]]["prompt"]
            if prompt != stores[0].places[clips[0][case][0]]["prompt"]:
                raise ValueError(
                    f"{store.folder}: case {case!r} has another prompt than in {stores[0].folder}; roll out "
                    "the same prompts file"
                )


def _copied(store: RolloutStore, wanted: Mapping[str, str], out: Path) -> list[dict[str, Any]]:
    """Rows of the clips (clip -> model) in the new store `out`, after their shards and files are copied."""
    first = len(list(out.glob("*.safetensors")))
    shards = {
        shard: first + number
        for number, shard in enumerate(sorted({store.places[clip]["shard"] for clip in wanted}))
    }
    for shard, number in shards.items():
        shutil.copyfile(store.folder / f"{shard:05d}.safetensors", out / f"{number:05d}.safetensors")
    rows = []
    for clip, model in wanted.items():
        row = store.places[clip]
        name = f"{row['case_id']}-{model}"
        row = {**row, "data_id": name, "model": model, "shard": shards[row["shard"]]}
        if row.get("video"):
            (out / MEDIA).mkdir(exist_ok=True)
            shutil.copyfile(store.folder / row["video"], out / MEDIA / f"{name}.mp4")
            row["video"] = f"{MEDIA}/{name}.mp4"
        rows.append(row)
    return rows


def makers(facts: Mapping[str, Any]) -> set[str]:
    """Ids of the checkpoints that made the clips of a store, empty where it does not say."""
    found = facts.get(MODELS, {"": facts.get("checkpoint_id", "")})
    return {checkpoint for checkpoint in found.values() if checkpoint}
