"""Keys of `reports/demo.json`: a metric's name, ending with the prompt set unless that is the main one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.scoring.sets import MAIN_SET

Interval = Mapping[str, Any]  # {mean, low, high, n} as JSON
Metrics = Mapping[str, Mapping[str, Interval]]  # key -> source -> interval
SOURCES = ("real", "codec", "generated")
RENAMED = {"voice_accuracy_resemblyzer_disagree": "reference_wins_disagree"}

TITLES = {
    "wer_pocketsphinx": "Word error rate (PocketSphinx)",
    "wer_pocketsphinx_judge": "Word error rate (PocketSphinx, the judge's set-up)",
    "intelligibility_pocketsphinx": "Intelligibility, 0 to 1 (PocketSphinx)",
    "intelligibility_pocketsphinx_judge": "Intelligibility, 0 to 1 (PocketSphinx, the judge's set-up)",
    "voice_accuracy_resemblyzer": "Nearest voice is the right one (Resemblyzer)",
    "sim_resemblyzer": "Similarity to the reference voice (Resemblyzer)",
    "sync_mini": "Sync reward at zero lag (reward network)",
    "sync_judge": "Sync reward at zero lag (judge network)",
    "sync_c_mini": "Sync-C of the judge's reduced SyncNet",
    "sync_d_mini": "Sync-D of the judge's reduced SyncNet (lower is better)",
    "lip_loudness_correlation": "Lips follow loudness (correlation)",
    "lip_loudness_lag_frames": "Lips after sound (frames)",
    "picture_noise_judge": "Noise of the picture, estimated (lower is better)",
    "snr_estimate_db": "Signal to noise, estimated (dB)",
    "reference_wins_disagree": "Reference voice wins over the text",
}
SUFFIXES = {  # of prompt sets that get a column each
    "_heldout_pairs": "word-voice pairs never trained",
    "_disagree": "text and reference disagree",
    "_dialogue": "dialogue",
    "_camera": "camera moves",
}


def metric_key(metric: str, prompt_set: str) -> str:
    """The key of a metric on the clips of a prompt set."""
    suffix = "" if prompt_set == MAIN_SET else f"_{prompt_set.removeprefix('pretrain_')}"
    return RENAMED.get(metric + suffix, metric + suffix)


def main_metrics(metrics: Metrics) -> list[str]:
    """Those of the main set that its generated clips have, in order."""
    return [
        name
        for name, by_source in metrics.items()
        if name in TITLES and not name.endswith("_disagree") and "generated" in by_source
    ]


def title(metric: str) -> str:
    """A metric's name for people, with what its suffix means."""
    if metric in TITLES:
        return TITLES[metric]
    for suffix, meaning in SUFFIXES.items():
        if metric.endswith(suffix):
            base = metric.removesuffix(suffix)
            return f"{TITLES.get(base, base)}, {meaning}"
    return metric


def by_set(metrics: Metrics) -> dict[str, dict[str, Interval]]:
    """suffix of a prompt set -> metric without it -> interval of the generated clips; sets without clips are
    left out."""
    grid: dict[str, dict[str, Interval]] = {}
    for suffix in SUFFIXES:
        for metric, by_source in metrics.items():
            if metric.endswith(suffix) and "generated" in by_source:
                base = metric if metric in TITLES else metric.removesuffix(suffix)
                grid.setdefault(suffix, {})[base] = by_source["generated"]
    return grid
