"""Chooses the curated set: a budget of paired clips that together stand for all of them, good ones first.

f(S) = sum over all clips i of max over chosen j of quality_j * similarity_ij: facility location in which a
clip of low quality stands for others only in part, so quality scales a clip's gain. It stays monotone and
submodular, so submodlib's lazy greedy choice is within 1 - 1/e of the best one (Nemhauser, Wolsey and Fisher
1978).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.features import picture_features, similarities, sound_features
from pretrain.data.manifest import (
    MAX_BAD_FRACTION,
    ManifestRow,
    check_rejected,
    read_manifest,
    write_manifest,
)
from pretrain.files import write_json
from pretrain.jsonl import FieldError
from pretrain.media.read import read_media
from pretrain.progress import track

RANDOM_SUBSETS = 20
NUM_READERS = 2


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """How many clips to keep and how much their quality counts. Raises ValueError for impossible numbers."""

    budget: int = 400
    quality_weight: float = 0.6  # 0 = quality does not matter, 1 = a clip of quality 0 is worth nothing
    max_bad_fraction: float = MAX_BAD_FRACTION
    seed: int = 0  # of the random subsets that the report compares with

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget: at least 1 clip, got {self.budget}")
        if not 0 <= self.quality_weight <= 1:
            raise ValueError(f"quality_weight: expected a number in [0, 1], got {self.quality_weight}")


def curate(config: CurateConfig, corpus: Path | str, out: Path | str) -> dict[str, Any]:
    """Reads `corpus`/paired.jsonl, writes `out`/curated.jsonl in manifest order; returns report.json.

    A budget of all clips or more keeps all. A clip that cannot be read is rejected with its reason and
    counted; too many raise ValueError.
    """
    manifest, out = Path(corpus) / "paired.jsonl", Path(out)
    rows, rejected = read_manifest(manifest, config.max_bad_fraction)
    rows, groups, unread = _features(rows)
    rejected = [*rejected, *unread]
    check_rejected(manifest, rejected, len(rows) + len(rejected), config.max_bad_fraction)
    quality = np.array([quality_of(row.quality) for row in rows])
    worth = similarities(groups) * (1.0 - config.quality_weight * (1.0 - quality))[None]
    chosen = choose(worth, config.budget)
    report = _report(config, rows, quality, worth, chosen)
    report["rejected"] = [error.at(manifest) for error in rejected]
    write_manifest(out / "curated.jsonl", [_moved(rows[index], Path(corpus), out) for index in chosen])
    write_json(out / "report.json", report)
    return report


def choose(worth: np.ndarray, budget: int) -> list[int]:
    """Sorted indices of the selected columns of `worth` [clips represented, candidates]; all if they fit."""
    from submodlib import FacilityLocationFunction  # slow to import

    count = worth.shape[1]
    if budget >= count:
        return list(range(count))
    kernel = np.ascontiguousarray(worth, dtype=np.float32)
    function = FacilityLocationFunction(
        n=count, mode="dense", separate_rep=True, n_rep=len(kernel), sijs=kernel
    )
    greedy = function.maximize(budget=budget, optimizer="LazyGreedy", verbose=False, show_progress=False)
    return sorted(int(index) for index, _ in greedy)


def facility_location(worth: np.ndarray, chosen: Sequence[int]) -> float:
    """f(S): how much of everything the chosen clips stand for."""
    return float(worth[:, list(chosen)].max(axis=1).sum())


def quality_of(labels: Mapping[str, Any]) -> float:
    """0..1 from a row's labels: SNR (20 dB is 0, 60 dB is 1), halved if clipped; 0.5 without a label."""
    snr_db = labels.get("snr_db")
    score = float(np.clip((snr_db - 20.0) / 40.0, 0.0, 1.0)) if isinstance(snr_db, (int, float)) else 0.5
    return score / 2 if labels.get("clipped") else score


def _features(rows: list[ManifestRow]) -> tuple[list[ManifestRow], list[np.ndarray], list[FieldError]]:
    """Readable rows, their feature groups (picture, motion and sound, kind), and errors of the other rows."""
    good: list[ManifestRow] = []
    pictures, sounds, rejected = [], [], []
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for row, looked in track(zip(rows, pool.map(_look, rows), strict=True), len(rows), "clips looked at"):
            if isinstance(looked, FieldError):
                rejected.append(looked)
                continue
            good.append(row)
            pictures.append(looked[0])
            sounds.append(looked[1])
    kinds = sorted({_kind(row) for row in good})
    one_hot = np.array([[_kind(row) == kind for kind in kinds] for row in good], np.float32)
    return good, [np.array(pictures), np.array(sounds), one_hot] if good else [], rejected


def _look(row: ManifestRow) -> tuple[np.ndarray, np.ndarray] | FieldError:
    """A clip's picture and sound features, or why it cannot be read."""
    try:
        media = read_media(row.data_path)
    except ValueError as error:
        return FieldError(row.line, "video_info[0].data_path", str(error))
    if media.frames is None or media.waveform is None:
        raise TypeError(f"{row.data_path}: read_media returned no frames or no sound")
    return picture_features(media.frames), sound_features(media.waveform)


def _kind(row: ManifestRow) -> str:
    """The kind that our corpus notes; for other people's rows the number of speech spans."""
    return str(row.meta["kind"]) if "kind" in row.meta else f"{len(row.speech_start_s)} spans"


def _moved(row: ManifestRow, corpus: Path, out: Path) -> ManifestRow:
    """The row for a manifest in `out`; reference paths, relative to the manifest, are rewritten."""
    if "reference_paths" not in row.meta:
        return row
    paths = [
        Path(os.path.relpath(corpus / path, out)).as_posix() if path else ""
        for path in row.meta["reference_paths"]
    ]
    return dataclasses.replace(row, meta={**row.meta, "reference_paths": paths})


def _report(
    config: CurateConfig, rows: list[ManifestRow], quality: np.ndarray, worth: np.ndarray, chosen: list[int]
) -> dict[str, Any]:
    """Curated beside random subsets of the same size."""
    rng = np.random.default_rng(config.seed)
    random = [rng.choice(len(rows), len(chosen), replace=False).tolist() for _ in range(RANDOM_SUBSETS)]
    described = [_describe(rows, quality, worth, subset) for subset in random]
    means = {key: float(np.mean([item[key] for item in described])) for key in described[0] if key != "kinds"}
    kinds = {
        kind: float(np.mean([item["kinds"].get(kind, 0) for item in described]))
        for kind in sorted({_kind(row) for row in rows})
    }
    return {
        "rows": len(rows),
        "chosen": len(chosen),
        "facility_location_of_all": facility_location(worth, range(len(rows))),
        "curated": _describe(rows, quality, worth, chosen),
        "random": {
            **means,
            "facility_location_best": max(item["facility_location"] for item in described),
            "kinds": kinds,
        },
    }


def _describe(
    rows: list[ManifestRow], quality: np.ndarray, worth: np.ndarray, subset: list[int]
) -> dict[str, Any]:
    spoken = {
        pair
        for i in subset
        for pair in zip(_listed(rows[i], "words"), _listed(rows[i], "voices"), strict=False)
    }
    kinds = [_kind(rows[i]) for i in subset]
    return {
        "facility_location": facility_location(worth, subset),
        "quality": float(quality[subset].mean()),
        "words": len({word for word, _ in spoken}),
        "voices": len({voice for _, voice in spoken}),
        "word_voice_pairs": len(spoken),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _listed(row: ManifestRow, key: str) -> list[str]:
    return list(row.meta[key]) if key in row.meta else []
