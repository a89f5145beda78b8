"""Scores a folder of clips by rewards and judges: every metric of every clip as a numerator and a
denominator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.scoring.options import reward_options
from experiments.scoring.samples import generated_samples
from pretrain.files import replacing
from rewards.catalog import open_rewards
from rewards.guardrails import GuardrailLimits, flags, measure
from rewards.options import fill
from rewards.types import Score

REWARDS = ("wer_pocketsphinx", "intelligibility_pocketsphinx", "sim_resemblyzer", "sync_mini")
JUDGES = (
    "wer_pocketsphinx_judge",
    "intelligibility_pocketsphinx_judge",
    "sync_judge",
    "picture_noise_judge",
    "lip_loudness_correlation",
)
RATIOS = {"wer_pocketsphinx": ("errors", "words"), "wer_pocketsphinx_judge": ("errors", "words")}


def metric_names(rubric: Sequence[str], panel: Sequence[str]) -> list[str]:
    """What is measured: the study's own, and whatever else a rubric rewards or a panel looks at (`reward` or
    `reward.part`)."""
    return list(dict.fromkeys([*REWARDS, *JUDGES, *rubric, *panel]))


def score_clips(
    clips: Path, names: Sequence[str], layout: Layout, limits: Mapping[str, float], processes: int, out: Path
) -> None:
    """Writes `out`: {"data_ids": [...], "metrics": {name: [[numerator, denominator] or null, ...]},
    "reasons": {name: [...]}, "flagged": number of clips beyond a guardrail}."""
    samples = [sample.clip for sample in generated_samples(clips, "speech")]
    rewards = list(dict.fromkeys(name.partition(".")[0] for name in names))
    with open_rewards(
        rewards, reward_options(rewards, layout.corpus, layout.syncnet, num_processes=processes)
    ) as opened:
        scores = {name: reward.score(samples) for name, reward in zip(rewards, opened, strict=True)}
    bounds = fill(GuardrailLimits, limits, "guardrails")
    content = {
        "data_ids": [clip.name for clip in samples],
        **tabulated(names, scores),
        "flagged": sum(bool(flags(measure(clip), bounds)) for clip in samples),
    }
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(content) + "\n")


def tabulated(names: Sequence[str], scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Metrics and reasons of scored clips, in their order."""
    return {
        "metrics": {name: [_pair(name, score) for score in scores[name.partition(".")[0]]] for name in names},
        "reasons": {name: [score.reason for score in found] for name, found in scores.items()},
    }


def _pair(name: str, score: Score) -> list[float] | None:
    if score.reason:
        return None
    if name in RATIOS:
        return [score.parts[part] for part in RATIOS[name]]
    part = name.partition(".")[2]
    return [score.parts[part] if part else score.value, 1.0]
