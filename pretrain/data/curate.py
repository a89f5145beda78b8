"""Chooses the curated set: a budget of paired clips that together stand for all of them, good ones first.

f(S) = sum over all clips i of max over chosen j of quality_j * similarity_ij: facility location in which a
clip of low quality stands for others only in part, so quality scales a clip's gain. It stays monotone and
submodular, so submodlib's lazy greedy choice is within 1 - 1/e of the best one (Nemhauser, Wolsey and Fisher
1978). Sets whose kernel is too large for memory are curated in parts (`curation/parts.py`).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.curation.greedy import choose, facility_location
from pretrain.data.curation.looks import (
    ClipLook,
    EmbeddedFeatures,
    Looked,
    MakeEmbedder,
    looked_at,
    looked_at_in_blocks,
)
from pretrain.data.curation.parts import PartLimits, choose_in_parts
from pretrain.data.curation.report import kind_of, report, report_of_parts
from pretrain.data.curation.worth import embed
from pretrain.data.features import similarities
from pretrain.data.manifest import (
    MAX_BAD_FRACTION,
    ManifestRow,
    check_rejected,
    read_manifest,
    write_manifest,
)
from pretrain.files import locked, write_json

__all__ = ["CurateConfig", "choose", "curate", "facility_location", "quality_of"]

PAIRED, CURATED, REPORT = "paired.jsonl", "curated.jsonl", "report.json"
VECTORS = "vectors.npy"


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """How many clips to keep and how much their quality counts. Raises ValueError for impossible numbers."""

    budget: int = 400
    quality_weight: float = 0.6  # 0 = quality does not matter, 1 = a clip of quality 0 is worth nothing
    max_bad_fraction: float = MAX_BAD_FRACTION
    seed: int = 0  # of the parts, and of the random subsets that the report compares with
    # more clips are curated in parts of about so many: 150 MB of each process, 700 MB for all at once
    dense_clips: int = 4000
    kernel_mb: int = 800  # of the second round
    embedding: str = (
        ""  # package.module:Class of what places clips (docs/curation.md); "" = embedded features
    )
    embedding_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget: at least 1 clip, got {self.budget}")
        if not 0 <= self.quality_weight <= 1:
            raise ValueError(f"quality_weight: expected a number in [0, 1], got {self.quality_weight}")
        if self.dense_clips < 10 or self.kernel_mb < 1:
            raise ValueError(
                f"dense_clips: at least 10, kernel_mb: at least 1, got {self.dense_clips} and "
                f"{self.kernel_mb}"
            )

    @property
    def parts(self) -> PartLimits:
        return PartLimits(clips=self.dense_clips, cells=self.kernel_mb * 2**20 // 8)


def curate(
    config: CurateConfig,
    corpus: Path | str,
    out: Path | str,
    manifest: str = PAIRED,
    work: Path | None = None,
    model: tuple[str, MakeEmbedder] | None = None,
    nproc: int = 0,
) -> dict[str, Any]:
    """Reads `corpus`/`manifest`, writes `out`/curated.jsonl in manifest order; returns report.json.

    A budget of all clips or more keeps all. A clip that cannot be read is rejected with its reason and
    counted; too many raise ValueError. More than `dense_clips`, or a `model` (name and maker of what places
    clips instead of the embedded features), are looked at by `nproc` processes (0: one for each processor),
    with features kept in `work` (default: beside `out`); their number changes nothing.
    """
    path, out = Path(corpus) / manifest, Path(out)
    rows, rejected = read_manifest(path, config.max_bad_fraction)
    folder = work or out.with_name(f".{out.name}.work")
    with work_folder(folder):
        looked = _looked(config, rows, folder, model, nproc or os.cpu_count() or 1)
        rejected = [*rejected, *looked.rejected]
        check_rejected(path, rejected, len(looked.rows) + len(rejected), config.max_bad_fraction)
        found, chosen = choose_rows(config, looked, folder, nproc)
    found["rejected"] = [error.at(path) for error in rejected]
    picked = [_moved(looked.rows[index], path.parent, out) for index in chosen]
    write_manifest(out / CURATED, picked)
    write_json(out / REPORT, found)
    return found


def choose_rows(
    config: CurateConfig, looked: Looked, folder: Path, nproc: int = 0
) -> tuple[dict[str, Any], list[int]]:
    """(report, sorted places of the chosen rows); vectors of a large set go to `folder`."""
    rows = looked.rows
    kinds = sorted({kind_of(row) for row in rows})
    one_hot = np.array([[kind_of(row) == kind for kind in kinds] for row in rows], np.float32)
    groups = [*looked.groups, one_hot]
    quality = np.array([quality_of(row.quality) for row in rows])
    weights = 1.0 - config.quality_weight * (1.0 - quality)
    if len(rows) > config.dense_clips:
        worth = embed(groups, weights, folder / VECTORS, config.seed)
        choice = choose_in_parts(worth, config.budget, config.seed, nproc, config.parts)
        return report_of_parts(rows, quality, worth, choice, config.seed), choice.indices
    kernel = similarities(groups) * weights[None]
    chosen = choose(kernel, config.budget)

    def value(subset: Sequence[int]) -> float:
        return facility_location(kernel, subset)

    return report(rows, quality, value, value(range(len(rows))), chosen, config.seed), chosen


@contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """Features of large sets stay in `folder` for the next time, mapped files go; nothing is left of a small
    set. Raises ValueError where another process works there."""
    otherwise = f"{folder}: another `nava curate` works there; wait for it or give another place"
    with locked(folder / "lock", otherwise):
        try:
            yield
        finally:
            for path in (*folder.glob("group*.npy"), folder / VECTORS):
                path.unlink(missing_ok=True)
    if not any(folder.glob("*.npz")):
        shutil.rmtree(folder, ignore_errors=True)


def quality_of(labels: Mapping[str, Any]) -> float:
    """0..1 from a row's labels: SNR (20 dB is 0, 60 dB is 1), halved if clipped; 0.5 without a label."""
    snr_db = labels.get("snr_db")
    score = float(np.clip((snr_db - 20.0) / 40.0, 0.0, 1.0)) if isinstance(snr_db, (int, float)) else 0.5
    return score / 2 if labels.get("clipped") else score


def _looked(
    config: CurateConfig,
    rows: list[ManifestRow],
    folder: Path,
    model: tuple[str, MakeEmbedder] | None,
    nproc: int,
) -> Looked:
    if model is None and len(rows) <= config.dense_clips:
        return looked_at(rows)
    name, make = model or ("embedded", EmbeddedFeatures)
    stamps = [ClipLook.stamp(row) for row in rows]
    return looked_at_in_blocks(rows, rows, stamps, partial(ClipLook, make), name, folder, nproc)


def _moved(row: ManifestRow, corpus: Path, out: Path) -> ManifestRow:
    """The row for a manifest in `out`; reference paths, relative to the manifest, are rewritten."""
    if "reference_paths" not in row.meta:
        return row
    paths = [
        Path(os.path.relpath(corpus / path, out)).as_posix() if path else ""
        for path in row.meta["reference_paths"]
    ]
    return dataclasses.replace(row, meta={**row.meta, "reference_paths": paths})
