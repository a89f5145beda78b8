"""What a choice is worth beside random ones of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pretrain.data.curation.parts import PartedChoice
from pretrain.data.curation.worth import ROWS, Worth
from pretrain.data.manifest import ManifestRow

RANDOM_SUBSETS = 20
EVALUATED = 2000  # clips, a random sample, on which a choice in parts is measured
ChoiceValue = Callable[[Sequence[int]], float]


def kind_of(row: ManifestRow) -> str:
    """The kind that our corpus notes; for other people's rows the number of speech spans."""
    return str(row.meta["kind"]) if "kind" in row.meta else f"{len(row.speech_start_s)} spans"


def report(
    rows: Sequence[ManifestRow],
    quality: np.ndarray,
    value: ChoiceValue,
    of_all: float,
    chosen: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """`value`: f of a subset; `of_all`: of all clips."""
    rng = np.random.default_rng(seed)
    random = [rng.choice(len(rows), len(chosen), replace=False).tolist() for _ in range(RANDOM_SUBSETS)]
    described = [_describe(rows, quality, value, subset) for subset in random]
    means = {key: float(np.mean([item[key] for item in described])) for key in described[0] if key != "kinds"}
    kinds = {
        kind: float(np.mean([item["kinds"].get(kind, 0) for item in described]))
        for kind in sorted({kind_of(row) for row in rows})
    }
    return {
        "rows": len(rows),
        "chosen": len(chosen),
        "facility_location_of_all": of_all,
        "curated": _describe(rows, quality, value, chosen),
        "random": {
            **means,
            "facility_location_best": max(item["facility_location"] for item in described),
            "kinds": kinds,
        },
    }


def report_of_parts(
    rows: Sequence[ManifestRow], quality: np.ndarray, worth: Worth, choice: PartedChoice, seed: int
) -> dict[str, Any]:
    """The same, estimated on a random sample of clips, with how the choice was found and its bound."""
    count = len(worth)
    sample = np.sort(np.random.default_rng([seed, 2]).permutation(count)[:EVALUATED])

    def value(subset: Sequence[int]) -> float:
        return float(worth.covered(sample, np.array(subset)).mean(dtype=np.float64)) * count

    of_all = value(range(count))
    found = report(rows, quality, value, of_all, choice.indices, seed)
    covered = worth.covered(sample, np.array(choice.indices))
    error = count * float(covered.std(ddof=1)) / np.sqrt(len(sample)) if len(sample) > 1 else 0.0
    how = {key: number for key, number in asdict(choice).items() if key != "indices"}
    return {
        **found,
        "parts": how,
        "evaluated_on": len(sample),
        "facility_location_95": round(1.96 * error, 3),
        "at_least_of_best": round(share_of_best(worth, sample, choice.indices, of_all / count), 4),
    }


def share_of_best(worth: Worth, sample: np.ndarray, chosen: Sequence[int], of_all: float) -> float:
    """A lower bound of f(S) over the best f of that size, by values on the sample: the best is at most f(S)
    and the greatest gains that as many further clips have each by itself (Leskovec et al. 2007, section 4.2),
    and at most f of all clips (`of_all`, a mean)."""
    covered = worth.covered(sample, np.array(chosen))
    gains = np.zeros(len(worth))
    for first in range(0, len(worth), ROWS):
        some = np.arange(first, min(first + ROWS, len(worth)))
        gains[some] = np.maximum(worth.block(sample, some) - covered[:, None], 0.0).mean(axis=0)
    own = float(covered.mean(dtype=np.float64))
    most = own + float(np.sort(gains)[-len(chosen) :].sum())
    return own / max(min(most, of_all), own, 1e-12)


def _describe(
    rows: Sequence[ManifestRow], quality: np.ndarray, value: ChoiceValue, subset: Sequence[int]
) -> dict[str, Any]:
    spoken = {
        pair
        for i in subset
        for pair in zip(_listed(rows[i], "words"), _listed(rows[i], "voices"), strict=False)
    }
    kinds = [kind_of(rows[i]) for i in subset]
    return {
        "facility_location": value(subset),
        "quality": float(quality[list(subset)].mean()),
        "words": len({word for word, _ in spoken}),
        "voices": len({voice for _, voice in spoken}),
        "word_voice_pairs": len(spoken),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _listed(row: ManifestRow, key: str) -> list[str]:
    return list(row.meta[key]) if key in row.meta else []
