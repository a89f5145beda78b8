"""Scores a folder of clips: every metric of every clip as a numerator and a denominator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.layout import Layout
from experiments.scoring.options import reward_options
from experiments.scoring.samples import generated_samples, real_samples
from experiments.scoring.voice_bank import timbre_encoder, voice_bank
from pretrain.files import replacing
from rewards.catalog import CATALOG, open_rewards
from rewards.guardrails import GuardrailLimits, flags, measure
from rewards.options import fill
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.voices import NearestVoice, VoiceBank
from rewards.types import Score

MAX_REAL_CLIPS = 208
VOICES = "voice_accuracy_resemblyzer"


@dataclass(frozen=True)
class Metric:
    name: str
    scorer: str
    part: str = ""
    numerator: str = ""
    denominator: str = ""
    lower_is_better: bool = False

    @property
    def role(self) -> str:
        rewards = ("wer_pocketsphinx", "intelligibility_pocketsphinx", "sim_resemblyzer", "sync_mini")
        return "reward" if self.name in rewards else "judge"


def metric(name: str) -> Metric:
    base, _, part = name.partition(".")
    if base in ("sync_c_mini", "sync_d_mini"):
        return Metric(name, "sync_judge", base, lower_is_better=base == "sync_d_mini")
    down = base in CATALOG and CATALOG[base].lower_is_better
    if name.startswith("wer"):
        return Metric(name, name, "", "errors", "words", True)
    return Metric(name, base, part, lower_is_better=down)


@dataclass(frozen=True)
class Scoring:
    """What is measured of every run's clips, and with what.

    `judge`: the sync network that every metric of sync_mini is taken with, None = the reward's own; `bank`:
    the voices of NearestVoice; `limits`: guardrails whose flagged clips are counted, None = they are not.
    """

    metrics: Mapping[str, Metric]
    layout: Layout
    num_processes: int
    judge: Path | None = None
    bank: Path | None = None
    limits: Mapping[str, float] | None = None


def write_voice_bank(corpus: Path, out: Path) -> None:
    """Embeddings of the real one-speaker clips and reference recordings, so that every run is measured with
    the same voices."""
    groups = real_samples(corpus / "validation.jsonl", MAX_REAL_CLIPS).values()
    samples = [sample for group in groups for sample in group]
    bank = voice_bank(ResemblyzerEncoder(), samples, corpus / "validation.jsonl")
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez(file, voices=bank.voices, names=bank.names, embeddings=bank.embeddings)


def score_clips(clips: Path, scoring: Scoring, out: Path) -> None:
    """Writes `out`: {"data_ids": [...], "metrics": {name: [[numerator, denominator] or null, ...]},
    "reasons": {scorer: [...]}} and, with guardrails, "flagged": number of clips beyond one."""
    samples = [sample.clip for sample in generated_samples(clips, "speech")]
    scorers = list(dict.fromkeys(metric.scorer for metric in scoring.metrics.values()))
    names = [name for name in scorers if not (name == VOICES and scoring.bank)]
    given = {"sync_mini": {"model": str(scoring.judge)}} if scoring.judge else {}
    layout = scoring.layout
    options = reward_options(
        names, layout.corpus, layout.syncnet, num_processes=scoring.num_processes, given=given
    )
    with open_rewards(names, options) as opened:
        rewards = dict(zip(names, opened, strict=True))
        if VOICES in scorers and scoring.bank:
            rewards[VOICES] = NearestVoice(timbre_encoder(opened), _read_bank(scoring.bank))
        scores = {name: reward.score(samples) for name, reward in rewards.items()}
    content = {"data_ids": [clip.name for clip in samples], **tabulated(scoring.metrics, scores)}
    if scoring.limits is not None:
        bounds = fill(GuardrailLimits, scoring.limits, "guardrails")
        content["flagged"] = sum(bool(flags(measure(clip), bounds)) for clip in samples)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(content) + "\n")


def tabulated(metrics: Mapping[str, Metric], scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Metrics and reasons of scored clips, in their order."""
    return {
        "metrics": {
            name: [_pair(metric, score) for score in scores[metric.scorer]]
            for name, metric in metrics.items()
        },
        "reasons": {name: [score.reason for score in found] for name, found in scores.items()},
    }


def _pair(metric: Metric, score: Score) -> list[float] | None:
    if score.reason:
        return None
    if metric.numerator:
        return [score.parts[metric.numerator], score.parts[metric.denominator]]
    return [score.parts[metric.part] if metric.part else score.value, 1.0]


def _read_bank(path: Path) -> VoiceBank:
    with np.load(path) as known:
        return VoiceBank(tuple(known["voices"].tolist()), tuple(known["names"].tolist()), known["embeddings"])
