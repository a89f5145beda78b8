"""What the benchmarks' papers give: figures of other systems, and how Verse-Bench makes composite scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

PaperTable = dict[str, dict[str, float]]  # system -> metric -> value
VERSE_BENCH_COLUMNS = ("Sync-C", "Sync-D", "IB", "VideoQ", "WER", "PQ", "FD")
# NAVA's project page (arXiv 2605.30073). Verse-Bench; WER is a fraction, IB a raw cosine. VideoQ is not
# defined there: (AS + ID) / 2 by its range.
VERSE_BENCH: PaperTable = {
    system: dict(zip(VERSE_BENCH_COLUMNS, figures, strict=True))
    for system, figures in {
        "Ovi 1.1": (7.4839, 7.9791, 0.199, 0.636, 0.102, 5.8432, 0.9418),
        "MOVA": (7.2888, 7.8080, 0.269, 0.603, 0.126, 7.2331, 0.9222),
        "daVinci": (7.1487, 7.8158, 0.269, 0.600, 0.151, 5.9559, 0.9307),
        "LTX 2.3": (7.2476, 7.6902, 0.337, 0.576, 0.106, 6.9459, 0.8287),
        "NAVA": (7.7914, 7.5655, 0.313, 0.659, 0.099, 6.8609, 0.8328),
    }.items()
}
# Seed-TTS eval, English: WER in percent, SIM x100
SEED_TTS_EN: PaperTable = {
    "CosyVoice": {"WER": 4.29, "SIM": 60.9},
    "Qwen2.5-Omni": {"WER": 2.72, "SIM": 63.2},
    "DreamID-Omni": {"WER": 33.44, "SIM": 34.1},
    "NAVA": {"WER": 5.81, "SIM": 62.4},
}
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
        inputs = [values.get(metric) for metric in metrics]
        numbers = [value for value in inputs if value is not None and math.isfinite(value)]
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
