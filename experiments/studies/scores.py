"""Scores a folder of generated clips for the study: every metric of every clip as a numerator and a
denominator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.scoring.samples import generated_samples, real_samples
from experiments.scoring.voice_bank import voice_bank
from pretrain.files import replacing
from rewards.base import Reward
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.voices import VoiceBank
from rewards.types import Score

MAX_REAL_CLIPS = 208


@dataclass(frozen=True)
class Metric:
    """Sum of `part` over sum of `per` over clips; "" = the scorer's value, and 1 per clip."""

    scorer: str
    part: str = ""
    per: str = ""
    higher_is_better: bool = True


METRICS = {
    "sync_mini": Metric("sync_mini"),
    "sync_c_mini": Metric("sync_mini", "sync_c_mini"),
    "sync_d_mini": Metric("sync_mini", "sync_d_mini", higher_is_better=False),
    "lip_loudness_correlation": Metric("lip_loudness_correlation"),
    "wer_pocketsphinx": Metric("wer_pocketsphinx", "errors", "words", higher_is_better=False),
    "sim_resemblyzer": Metric("sim_resemblyzer"),
    "voice_accuracy_resemblyzer": Metric("voice_accuracy_resemblyzer"),
}


def write_voice_bank(corpus: Path, out: Path) -> None:
    """Embeddings of the real one-speaker clips and reference recordings, so that every training is judged by
    the same voices."""
    samples = [
        sample
        for group in real_samples(corpus / "validation.jsonl", MAX_REAL_CLIPS).values()
        for sample in group
    ]
    bank = voice_bank(ResemblyzerEncoder(), samples, corpus / "validation.jsonl")
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez(file, voices=bank.voices, names=bank.names, embeddings=bank.embeddings)


def score_clips(clips: Path, bank: Path, judge: str, processes: int, out: Path) -> None:
    """Writes `out`: {"data_ids": [...], "metrics": {name: [[numerator, denominator] or null, ...]},
    "reasons": {name: [...]}}.

    judge: folder of the sync network, "" = none, and then its metrics are absent.
    """
    from pretrain.data.corpus.bank import vocabulary
    from rewards.speech.recognizer import Recognizer

    samples = generated_samples(clips, "speech")
    with Recognizer(vocabulary(), processes) as recognizer:
        scores = {
            scorer.name: scorer.score([sample.clip for sample in samples])
            for scorer in _scorers(recognizer, bank, judge)
        }
    content = {"data_ids": [sample.data_id for sample in samples], **tabulated(scores)}
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(content) + "\n")


def tabulated(scores: dict[str, list[Score]]) -> dict[str, Any]:
    """Metrics and reasons of scored clips, in their order; a metric whose scorer did not run is absent."""
    present = {name: metric for name, metric in METRICS.items() if metric.scorer in scores}
    return {
        "metrics": {
            name: [_pair(metric, score) for score in scores[metric.scorer]]
            for name, metric in present.items()
        },
        "reasons": {name: [score.reason for score in values] for name, values in scores.items()},
    }


def _pair(metric: Metric, score: Score) -> list[float] | None:
    if score.reason:
        return None
    return [
        score.parts[metric.part] if metric.part else score.value,
        score.parts[metric.per] if metric.per else 1.0,
    ]


def _scorers(recognizer: Any, bank: Path, judge: str) -> Sequence[Reward]:
    from rewards.lips import LipLoudness
    from rewards.speech.wer import WordErrorRate
    from rewards.timbre.similarity import TimbreSimilarity
    from rewards.timbre.voices import NearestVoice

    with np.load(bank) as known:
        voices = VoiceBank(
            tuple(known["voices"].tolist()), tuple(known["names"].tolist()), known["embeddings"]
        )
    encoder = ResemblyzerEncoder()
    scorers = [
        WordErrorRate(recognizer),
        NearestVoice(encoder, voices),
        TimbreSimilarity(encoder),
        LipLoudness(),
    ]
    return [*scorers, _sync(Path(judge))] if judge else scorers


def _sync(judge: Path) -> Reward:
    from rewards.sync.crops import MouthBoxes
    from rewards.sync.scorer import SyncReward
    from rewards.sync.syncnet import load_syncnet

    return SyncReward(load_syncnet(judge), MouthBoxes(), name="sync_mini")
