"""What the generated clips are worth: per-clip scores become means with intervals, beside real clips and their codec round trips."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.score_sets import MAIN_SET
from experiments.statistics import Interval, bootstrap_mean, bootstrap_ratio
from pretrain.files import replacing
from pretrain.jsonl import FieldError, scan

SUFFIXES = {MAIN_SET: ""}  # of a metric's name, by prompt set; elsewhere the set's name without "pretrain"
RENAMED = {"voice_accuracy_resemblyzer_disagree": "reference_wins_disagree"}
# metric -> (scorer, part of its score; "" = its value), averaged over clips
MEANS = {
    "intelligibility_pocketsphinx": ("intelligibility_pocketsphinx", ""),
    "voice_accuracy_resemblyzer": ("voice_accuracy_resemblyzer", ""),
    "sim_resemblyzer": ("sim_resemblyzer", ""),
    "sync_mini": ("sync_mini", ""),
    "sync_judge": ("sync_judge", ""),
    "sync_c_mini": ("sync_judge", "sync_c_mini"),
    "sync_d_mini": ("sync_judge", "sync_d_mini"),
    "lip_loudness_correlation": ("lip_loudness_correlation", ""),
    "lip_loudness_lag_frames": ("lip_loudness_correlation", "lag_frames"),
    "snr_estimate_db": ("snr_estimate_db", ""),
}
# metrics that are a sum of errors over a sum of words
RATIOS = ("wer_pocketsphinx", "wer_pocketsphinx_judge")
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How scores are summed up."""

    seed: int = 0  # of the bootstrap


def evaluate(config: EvaluateConfig, scores: Path, out: Path) -> dict[str, Any]:
    """Reads the rows of `score_sets` and writes `out`: `{metric: {real|codec|generated: {mean, low, high, n}}}`.

    Raises FileNotFoundError or ValueError in one line; nothing is written then.
    """
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for (prompt_set, source), rows in read_scores(scores).items():
        suffix = SUFFIXES.get(prompt_set, prompt_set.removeprefix("pretrain"))
        for name, interval in summarise(rows, config.seed).items():
            metrics.setdefault(RENAMED.get(name + suffix, name + suffix), {})[source] = interval.as_json()
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    return metrics


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


def summarise(rows: Sequence[Row], seed: int = 0) -> dict[str, Interval]:
    """One interval per metric; a metric that no clip of the group could be scored on is left out."""
    intervals = {name: bootstrap_ratio(column(rows, name, "errors"), column(rows, name, "words"), seed) for name in RATIOS}
    intervals |= {name: bootstrap_mean(column(rows, scorer, part), seed) for name, (scorer, part) in MEANS.items()}
    return {name: interval for name, interval in intervals.items() if interval.n}


def column(rows: Sequence[Row], scorer: str, part: str = "") -> list[float]:
    """A scorer's value or a part of its score for every row; NaN where the clip could not be scored or the scorer did not run."""
    return [_number(row["parts"].get(scorer, {}).get(part) if part else row["scores"].get(scorer)) for row in rows]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
