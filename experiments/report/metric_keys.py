"""Keys of `reports/demo.json`: the metric's name, suffixed with the prompt set unless it is the main one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.scoring.sets import ALIGN_SET, MAIN_SET, ScoreConfig
from rewards.catalog import CATALOG, metrics_of
from rewards.metric import Metric

IntervalJson = Mapping[str, Any]  # {mean, low, high, n}, clusters where clips share one, as JSON
Metrics = Mapping[str, Mapping[str, IntervalJson]]  # key -> source -> interval
MetricsByName = Mapping[str, Metric]  # by name
SOURCES = ("real", "codec", "generated")
VOICES_EXCHANGED = "voices_exchanged"  # of the dialogues' two sets together; under the second's key
SUFFIXES = {  # of prompt sets that get a column each
    "_heldout_pairs": "word-voice pairs never trained",
    "_disagree": "text and reference disagree",
    "_dialogue": "dialogue",
    "_dialogue_exchanged": "dialogue, references exchanged",
    "_camera": "camera moves",
    "_t2a": "sound without picture",
}
RENAMED = {"voice_accuracy_resemblyzer_disagree": "reference_wins_disagree"}
TITLES = {
    "reference_wins_disagree": "Reference voice wins over the text",
    VOICES_EXCHANGED: "Exchanged references exchange the voices",
}


def reported_metrics(score: ScoreConfig | None = None) -> dict[str, Metric]:
    """Metrics by name: the catalog's, and those of plug-ins listed in the recipe's `score`."""
    return metrics_of((*CATALOG, *(score.rewards + score.align_judges if score else ())))


def metric_key(metric: str, prompt_set: str) -> str:
    """The key of a metric on the clips of a prompt set."""
    suffix = "" if prompt_set == MAIN_SET else f"_{prompt_set.removeprefix('pretrain_')}"
    return RENAMED.get(metric + suffix, metric + suffix)


def main_metrics(metrics: Metrics) -> list[str]:
    """Keys of the main set that have generated clips, in order."""
    ends = (*SUFFIXES, f"_{ALIGN_SET}")
    return [
        name for name, by_source in metrics.items() if not name.endswith(ends) and "generated" in by_source
    ]


def title(key: str, known: MetricsByName) -> str:
    """Display name of a metric; its key if unknown."""
    return known[key].title if key in known else TITLES.get(key, key)


def count_of(interval: IntervalJson) -> str:
    """`208`, or `208 of 72 pairs`: clips, and pairs of words and voices where some are of the same."""
    return (
        f"{interval['n']} of {interval['clusters']} pairs" if interval.get("clusters") else f"{interval['n']}"
    )


def most_clips(intervals: Iterable[IntervalJson]) -> IntervalJson:
    """The one over the most clips."""
    return max(intervals, key=lambda interval: (interval["n"], interval.get("clusters", 0)))


def by_set(metrics: Metrics) -> dict[str, dict[str, IntervalJson]]:
    """Prompt-set suffix -> metric -> interval of the generated clips; empty sets are left out."""
    grid: dict[str, dict[str, IntervalJson]] = {}
    for suffix in SUFFIXES:
        for metric, by_source in metrics.items():
            if metric.endswith(suffix) and "generated" in by_source:
                base = metric if metric in RENAMED.values() else metric.removesuffix(suffix)
                grid.setdefault(suffix, {})[base] = by_source["generated"]
    return grid
