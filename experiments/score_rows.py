"""Rows of `score_sets` as they are summed up: which metric is read from what, clip by clip."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.statistics import Terms
from pretrain.jsonl import FieldError, scan

# metrics that are a sum of errors over a sum of words
RATIOS = ("wer_pocketsphinx", "wer_pocketsphinx_judge")
# metric -> (scorer, part of its score; "" = its value), averaged over clips
MEANS = {
    "intelligibility_pocketsphinx": ("intelligibility_pocketsphinx", ""),
    "intelligibility_pocketsphinx_judge": ("intelligibility_pocketsphinx_judge", ""),
    "voice_accuracy_resemblyzer": ("voice_accuracy_resemblyzer", ""),
    "sim_resemblyzer": ("sim_resemblyzer", ""),
    "sync_mini": ("sync_mini", ""),
    "sync_judge": ("sync_judge", ""),
    "sync_c_mini": ("sync_judge", "sync_c_mini"),
    "sync_d_mini": ("sync_judge", "sync_d_mini"),
    "lip_loudness_correlation": ("lip_loudness_correlation", ""),
    "lip_loudness_lag_frames": ("lip_loudness_correlation", "lag_frames"),
    "picture_noise_judge": ("picture_noise_judge", ""),
    "snr_estimate_db": ("snr_estimate_db", ""),
}
Row = Mapping[str, Any]


def read_scores(path: Path) -> dict[tuple[str, str], list[Row]]:
    """Rows by prompt set and source; FileNotFoundError or ValueError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run `nava evaluate`, which scores the clips first")
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for _, row in scan(path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        groups[row["prompt_set"], row["source"]].append(row)
    return dict(groups)


def terms(rows: Sequence[Row], metric: str) -> Terms:
    """Numerators and denominators of a metric, one each for every row; NaN where the clip could not be scored."""
    if metric in RATIOS:
        return column(rows, metric, "errors"), column(rows, metric, "words")
    return column(rows, *MEANS[metric]), [1.0] * len(rows)


def column(rows: Sequence[Row], scorer: str, part: str = "") -> list[float]:
    """A scorer's value or a part of its score for every row; NaN where the clip could not be scored or the scorer did not run."""
    return [number(row["parts"].get(scorer, {}).get(part) if part else row["scores"].get(scorer)) for row in rows]


def number(value: float | None) -> float:
    """NaN for JSON's null."""
    return math.nan if value is None else float(value)
