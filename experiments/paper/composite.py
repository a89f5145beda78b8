"""Verse-Bench's composite scores from its twelve metrics; each one only where all of its inputs were
measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

# metric -> (value that counts 1, value that counts 0); beyond them it is clipped
BOUNDS: Mapping[str, tuple[float, float]] = {
    "AS": (1.0, 0.0),
    "ID": (1.0, 0.0),
    "FD": (0.0, 3.0),
    "KL": (0.0, 4.0),
    "CS": (1.0, 0.0),
    "CE": (10.0, 1.0),
    "CU": (10.0, 1.0),
    "PC": (1.0, 10.0),
    "PQ": (10.0, 1.0),
    "WER": (0.0, 1.0),
    "LSE-C": (10.0, 0.0),
    "AV-A": (0.0, 1.0),
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "S_video": ("AS", "ID"),
    "S_audio": ("FD", "KL", "CS", "CE", "CU", "PC", "PQ"),
    "S_other": ("WER", "LSE-C"),
    "S_joint": ("CS", "AV-A"),
}
WEIGHTS: Mapping[str, float] = {"S_joint": 0.5, "S_video": 0.2, "S_audio": 0.2, "S_other": 0.1}


def normalise(metric: str, value: float) -> float:
    """0..1, higher is better."""
    best, worst = BOUNDS[metric]
    return min(1.0, max(0.0, (value - worst) / (best - worst)))


def composites(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """S_video, S_audio, S_other (means), S_joint (harmonic mean) and Overall; None where an input is missing
    or NaN."""
    found: dict[str, float | None] = {}
    for name, metrics in PARTS.items():
        numbers = [
            value for metric in metrics if (value := values.get(metric)) is not None and math.isfinite(value)
        ]
        if len(numbers) < len(metrics):
            found[name] = None
            continue
        scores = [normalise(metric, value) for metric, value in zip(metrics, numbers, strict=True)]
        found[name] = _harmonic(*scores) if name == "S_joint" else sum(scores) / len(scores)
    parts = [(weight, score) for name, weight in WEIGHTS.items() if (score := found[name]) is not None]
    found["Overall"] = sum(weight * score for weight, score in parts) if len(parts) == len(WEIGHTS) else None
    return found


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0
