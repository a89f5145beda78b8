"""What the generated clips are worth: per-clip scores become means with intervals, beside real clips and
their codec round trips."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.report.before_after import before_after
from experiments.report.simulated_gsb import simulated_gsb
from experiments.scoring.rows import Row, read_scores, terms
from experiments.scoring.sets import ALIGN_SET, MAIN_SET, ScoreConfig
from experiments.scoring.statistics import Interval, bootstrap_ratio
from finetune.gsb.panel import PanelConfig
from pretrain.files import replacing
from rewards.catalog import metrics_of
from rewards.guardrails import GuardrailLimits
from rewards.options import fill

SUFFIXES = {
    MAIN_SET: "",
    ALIGN_SET: f"_{ALIGN_SET}",
}  # of a metric's name, by prompt set; elsewhere the set's name without "pretrain"
RENAMED = {"voice_accuracy_resemblyzer_disagree": "reference_wins_disagree"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How scores are summed up."""

    seed: int = 0  # of the bootstrap
    panel: PanelConfig = field(default_factory=PanelConfig)  # simulated raters of before and after alignment


def evaluate(
    config: EvaluateConfig,
    scores: Path,
    out: Path,
    alignment_out: Path | None = None,
    votes_out: Path | None = None,
    rewarded: Mapping[str, float] = {},
    limits: Mapping[str, float] = {},
) -> dict[str, Any]:
    """Reads the rows of `score_sets` and writes `out`: `{metric: {real|codec|generated|aligned: {mean, low,
    high, n}}}`.

    With clips before and after alignment, `alignment_out` gets what `before_after` finds and, with
    `votes_out` (the simulated panel's votes), `raters`. `rewarded`: weights of the rubric; `limits`: the
    guardrails' that the clips were scored with. Without them an old `alignment_out` is removed. Raises
    FileNotFoundError or ValueError in one line; only votes are written then.
    """
    groups = read_scores(scores)
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for (prompt_set, source), rows in groups.items():
        suffix = SUFFIXES.get(prompt_set, prompt_set.removeprefix("pretrain"))
        for name, interval in summarise(rows, config.seed).items():
            metrics.setdefault(RENAMED.get(name + suffix, name + suffix), {})[source] = interval.as_json()
    alignment = _alignment(config, groups, votes_out, rewarded, limits) if alignment_out else None
    _write(out, metrics)
    if alignment_out and alignment:
        _write(alignment_out, alignment)
    elif alignment_out:
        alignment_out.unlink(missing_ok=True)  # of other clips than those just summed up
    return metrics


def summarise(rows: Sequence[Row], seed: int = 0) -> dict[str, Interval]:
    """One interval per metric; a metric that no clip of the group could be scored on is left out."""
    asked = ScoreConfig()
    metrics = metrics_of((*asked.rewards, *asked.align_judges))
    intervals = {name: bootstrap_ratio(*terms(rows, metric), seed) for name, metric in metrics.items()}
    return {name: interval for name, interval in intervals.items() if interval.n}


def _alignment(
    config: EvaluateConfig,
    groups: Mapping[tuple[str, str], Sequence[Row]],
    votes_out: Path | None,
    rewarded: Mapping[str, float],
    limits: Mapping[str, float],
) -> dict[str, Any] | None:
    before, after, codec = (
        groups.get(key, ()) for key in ((ALIGN_SET, "generated"), (ALIGN_SET, "aligned"), (MAIN_SET, "codec"))
    )
    if not before or not after or not codec:
        log.warning(
            "%s: clips before or after alignment, or of the codec, are not among the scores; no comparison "
            "is written",
            ALIGN_SET,
        )
        return None
    return {
        "prompt_set": ALIGN_SET,
        "codec_of": MAIN_SET,
        **compare(config, before, after, codec, votes_out, rewarded, limits),
    }


def compare(
    config: EvaluateConfig,
    before: Sequence[Row],
    after: Sequence[Row],
    codec: Sequence[Row],
    votes_out: Path | None,
    rewarded: Mapping[str, float],
    limits: Mapping[str, float],
) -> dict[str, Any]:
    """What `before_after` finds and, with `votes_out` (the simulated panel's votes), `raters`; arguments as
    of `evaluate`."""
    weighed = [name for name, weight in rewarded.items() if weight]
    found = before_after(
        before, after, codec, fill(GuardrailLimits, limits, "align.guardrails"), weighed, config.seed
    )
    return {
        **found,
        **({"raters": simulated_gsb(config.panel, before, after, votes_out, rewarded)} if votes_out else {}),
    }


def _write(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
