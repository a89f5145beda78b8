"""Score a folder of clips: every metric of every clip as numerator and denominator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.scoring.options import reward_options
from experiments.scoring.samples import generated_samples, real_samples
from experiments.scoring.score import guarded, scores_of
from experiments.scoring.sets import VOICES, ScoreConfig
from experiments.scoring.voice_bank import timbre_encoder, voice_bank
from pretrain.files import write_json
from rewards.base import Reward
from rewards.catalog import is_plugin, metric, metrics_of, open_rewards
from rewards.guardrails import GuardrailLimits
from rewards.metric import Metric
from rewards.options import fill
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.voices import NearestVoice, VoiceBank
from rewards.types import Score

MAX_REAL_CLIPS = 208


@dataclass(frozen=True)
class Scoring:
    """What is measured of every run's clips.

    `judge`: the sync network that every metric of sync_mini is taken with, None = the reward's own; `bank`:
    the voices of NearestVoice; `limits`: guardrails whose flagged clips are counted, None = they are not.
    """

    metrics: Mapping[str, Metric]
    layout: Layout
    num_processes: int
    judge: Path | None = None
    bank: VoiceBank | None = None
    limits: Mapping[str, float] | None = None


def added_rewards(config: ScoreConfig) -> list[str]:
    """Rewards that a recipe scores beyond the default ones; every study measures them too."""
    usual = ScoreConfig()
    requested = dict.fromkeys((*config.rewards, *config.align_judges))
    return [name for name in requested if name not in (*usual.rewards, *usual.align_judges)]


def added_metrics(config: ScoreConfig) -> dict[str, Metric]:
    """Of the added rewards, a plug-in's under package.module:Class."""
    added = added_rewards(config)
    listed = metrics_of(name for name in added if not is_plugin(name))
    return {**listed, **{name: metric(name) for name in added if is_plugin(name)}}


def by_scorer(names: Sequence[str], opened: Sequence[Reward]) -> dict[str, Reward]:
    """Opened rewards by their names in score rows."""
    pairs = zip(names, opened, strict=True)
    return {reward.name if is_plugin(name) else name: reward for name, reward in pairs}


def voices_of(corpus: Path) -> VoiceBank:
    """Voice bank of the real one-speaker clips and reference recordings, the same for all runs."""
    groups = real_samples(corpus / "validation.jsonl", MAX_REAL_CLIPS).values()
    samples = [sample for group in groups for sample in group]
    return voice_bank(ResemblyzerEncoder(), samples, corpus / "validation.jsonl")


def score_clips(clips: Path, scoring: Scoring, out: Path) -> None:
    """Write scores of the clips to `out`.

    Format: {"data_ids": [...], "metrics": {name: [[numerator, denominator] or null, ...]}, "reasons":
    {scorer: [...]}} and, with guardrails, "flagged": the number of clips beyond one.
    """
    samples = [sample.clip for sample in generated_samples(clips, "speech")]
    scorers = [name if is_plugin(name) else found.scorer for name, found in scoring.metrics.items()]
    names = [name for name in dict.fromkeys(scorers) if not (name == VOICES and scoring.bank)]
    given = {"sync_mini": {"model": str(scoring.judge)}} if scoring.judge else {}
    layout = scoring.layout
    options = reward_options(
        names, layout.corpus, layout.syncnet, num_processes=scoring.num_processes, given=given
    )
    with open_rewards(names, options) as opened:
        rewards = by_scorer(names, opened)
        if VOICES in scorers and scoring.bank:
            rewards[VOICES] = NearestVoice(timbre_encoder(opened), scoring.bank)
        scores = {name: scores_of(name, reward, samples) for name, reward in rewards.items()}
    content = {"data_ids": [clip.name for clip in samples], **tabulated(scoring.metrics, scores)}
    if scoring.limits is not None:
        bounds = fill(GuardrailLimits, scoring.limits, "guardrails")
        content["flagged"] = sum(bool(guarded(clip, bounds)[1]) for clip in samples)
    write_json(out, content, indent=None)


def tabulated(metrics: Mapping[str, Metric], scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Metrics and reasons of scored clips, in order."""
    return {
        "metrics": {
            name: [_pair(found, score) for score in scores[found.scorer]] for name, found in metrics.items()
        },
        "reasons": {name: [score.reason for score in values] for name, values in scores.items()},
    }


def _pair(found: Metric, score: Score) -> list[float] | None:
    if score.reason:
        return None
    if found.numerator:
        return [score.parts[found.numerator], score.parts[found.denominator]]
    return [score.parts[found.part] if found.part else score.value, 1.0]
