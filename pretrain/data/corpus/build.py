"""Builds the corpus: script, media, manifests, prompts and a summary, from the speech bank alone."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.casting import Casting, cast
from pretrain.data.corpus.config import CorpusConfig
from pretrain.data.corpus.plan import ClipPlan
from pretrain.data.corpus.record import prompt_row, record, write_reference
from pretrain.data.corpus.script import prompt_sets, training_sets
from pretrain.data.corpus.talk import talk_sets
from pretrain.data.manifest import read_manifest
from pretrain.data.mixing import MixEntry, write_mix
from pretrain.jsonl import dump
from pretrain.owned import check_owned, owned_folder
from pretrain.progress import track
from pretrain.prompt import read_prompts
from pretrain.randomness import stable_hash

__all__ = ["CorpusConfig", "build_corpus"]

MIX = {
    "audio_only": (3.0, "text_to_audio"),
    "paired": (1.0, "text_to_av"),
    "hq_audio": (1.0, "text_to_audio"),
}
POOL_MIN_CLIPS = 200  # fewer clips are written sooner than processes start


def build_corpus(config: CorpusConfig, out: Path | str) -> dict[str, Any]:
    """Writes the corpus to `out` and returns summary.json's content. Same config, same files.

    It is built beside `out` and takes its place at the end. Raises ValueError when `out` is a folder with
    something else in it, or when the config asks for more than the bank or the texts can give.
    """
    out = Path(out)
    check_owned(out, "corpus")
    casting = cast(config)
    sets = training_sets(config, casting)
    prompts = prompt_sets(config, casting, sets["validation"])
    sets |= talk_sets(config, casting)
    with owned_folder(out, "corpus") as folder:
        for name in ("clips", "sounds", "references", "prompts"):
            (folder / name).mkdir(parents=True)
        for name, (voice, words) in casting.references.items():
            write_reference(folder / "references" / f"{name}.wav", voice, words)
        _write_sets(config, sets, folder)
        for name, plans in prompts.items():
            if plans:
                dump(folder / "prompts" / f"{name}.jsonl", map(prompt_row, plans))
                read_prompts(folder / "prompts" / f"{name}.jsonl")
        present = [name for name in MIX if sets[name]]
        write_mix(
            folder / "mix.list",
            [MixEntry(i, name, folder / f"{name}.jsonl", *MIX[name]) for i, name in enumerate(present)],
        )
        summary = _summary(config, casting, sets, prompts, folder)
        dump(folder / "summary.json", [summary])
    return summary


def _write_sets(config: CorpusConfig, sets: dict[str, list[ClipPlan]], folder: Path) -> None:
    plans = [plan for of_set in sets.values() for plan in of_set]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for plan, row in zip(
        plans, track(_recorded(config, plans, folder), len(plans), "clips written"), strict=True
    ):
        rows[plan.set_name].append(row)
    for name, of_set in rows.items():
        if of_set:
            dump(folder / f"{name}.jsonl", of_set)


def _recorded(config: CorpusConfig, plans: list[ClipPlan], folder: Path) -> Iterator[dict[str, Any]]:
    jobs = [(plan, stable_hash(config.seed, plan.data_id, "media") % 2**32) for plan in plans]
    work = partial(_record, folder)
    if config.processes == 1 or len(plans) < POOL_MIN_CLIPS:
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(
        config.processes
    ) as pool:  # fork would copy torch's threads
        yield from pool.imap(work, jobs, chunksize=16)


def _record(folder: Path, job: tuple[ClipPlan, int]) -> dict[str, Any]:
    plan, seed = job
    return record(plan, folder, seed)


def _summary(
    config: CorpusConfig,
    casting: Casting,
    sets: dict[str, list[ClipPlan]],
    prompts: dict[str, list[ClipPlan]],
    folder: Path,
) -> dict[str, Any]:
    counts = {}
    for name, plans in sets.items():
        rows, rejected = read_manifest(folder / f"{name}.jsonl") if plans else ([], [])
        counts[name] = {
            "rows": len(rows),
            "rejected": len(rejected),
            "seconds": round(sum(row.duration_s for row in rows), 3),
            "kinds": dict(sorted(Counter(plan.kind for plan in plans).items())),
            "swapped": sum(plan.swapped for plan in plans),
            "voice_described": sum(bool(plan.described_voice) for plan in plans),
        }
    bank = load_bank()
    return {
        "sets": counts,
        "prompts": {name: len(plans) for name, plans in prompts.items() if plans},
        "words": bank.words,
        "voices": bank.voices,
        "held_out_pairs": [f"{word}/{voice}" for word, voice in casting.held_out],
        "references": len(casting.references),
        "config": dataclasses.asdict(config),
    }
