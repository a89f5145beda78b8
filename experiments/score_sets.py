"""Scores real clips, their codec round trips and generated clips with every scorer of the pipeline, one row per clip."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.evaluate_clips import Sample, codec_samples, generated_samples, real_samples
from experiments.reward_options import reward_options
from experiments.voice_bank import timbre_encoder, voice_bank
from pretrain.codecs.base import load_codecs
from pretrain.jsonl import dump
from pretrain.progress import track
from rewards.catalog import open_rewards
from rewards.timbre.voices import NearestVoice
from rewards.types import Score

MAIN_SET = "pretrain_seen"
# prompt set -> kind of the real clips it is compared with; "" = none
PROMPT_SETS = {
    MAIN_SET: "speech",
    "pretrain_heldout_pairs": "",
    "pretrain_disagree": "",
    "pretrain_dialogue": "dialogue",
    "pretrain_camera": "camera",
}
SCORES = "clips.jsonl"
REWARDS = (
    "wer_pocketsphinx",
    "wer_pocketsphinx_judge",
    "intelligibility_pocketsphinx",
    "sim_resemblyzer",
    "sync_mini",
    "sync_judge",
    "lip_loudness_correlation",
    "snr_estimate_db",
)

log = logging.getLogger(__name__)
Groups = dict[tuple[str, str], list[Sample]]  # by prompt set and source (real, codec or generated)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which clips are scored, and with what."""

    max_real_clips: int = 208  # of each kind
    vocabulary: tuple[str, ...] = ()  # empty = the words of the speech bank
    num_processes: int = 2  # of the recogniser


def score_sets(config: ScoreConfig, corpus: Path, codec: Path, syncnet: Path, generated: Path, out: Path) -> Path:
    """Writes `out/clips.jsonl`: for every clip its set, source, prompt, what was heard, each scorer's value, parts and reason.

    `corpus`, `codec` and `syncnet` are outputs of those stages, `generated` holds one folder per prompt set; only `pretrain_seen` must
    exist. Raises FileNotFoundError or ValueError in one line; nothing is written then.
    """
    start = time.perf_counter()
    if not (generated / MAIN_SET / "index.jsonl").is_file():
        raise FileNotFoundError(f"{generated / MAIN_SET / 'index.jsonl'}: no such file; run `nava generate` on {MAIN_SET}.jsonl first")
    groups = _collect(config, corpus, codec, generated)
    log.info("score: %d clips read in %.1f s", sum(map(len, groups.values())), time.perf_counter() - start)
    scores = _score_all(config, [sample for group in groups.values() for sample in group], corpus, syncnet)
    dump(out / SCORES, _rows(groups, scores))
    log.info("score: done in %.1f s", time.perf_counter() - start)
    return out / SCORES


def _collect(config: ScoreConfig, corpus: Path, codec: Path, generated: Path) -> Groups:
    real = real_samples(corpus / "validation.jsonl", config.max_real_clips)
    codecs = load_codecs(codec)
    groups: Groups = {}
    for prompt_set, kind in track(PROMPT_SETS.items(), len(PROMPT_SETS), "prompt sets read"):
        if not (generated / prompt_set / "index.jsonl").is_file():
            log.warning("%s: no such prompt set among the generated clips; its metrics are left out", generated / prompt_set)
            continue
        if kind in real:
            groups[prompt_set, "real"] = real[kind]
            groups[prompt_set, "codec"] = codec_samples(real[kind], codecs)
        groups[prompt_set, "generated"] = generated_samples(generated / prompt_set, kind or "speech")
    return groups


def _score_all(config: ScoreConfig, samples: Sequence[Sample], corpus: Path, syncnet: Path) -> dict[str, list[Score]]:
    """Every scorer over all clips as one batch."""
    clips = [sample.clip for sample in samples]
    scores = {}
    options = reward_options(REWARDS, corpus, syncnet, config.vocabulary, config.num_processes)
    with open_rewards(REWARDS, options) as opened:
        encoder = timbre_encoder(opened)
        rewards = [*opened, NearestVoice(encoder, voice_bank(encoder, samples, corpus / "validation.jsonl"))]
        for reward in track(rewards, len(rewards), f"scorers run on {len(clips)} clips"):
            start = time.perf_counter()
            scores[reward.name] = reward.score(clips)
            log.info("score: %s, %d clips in %.1f s", reward.name, len(clips), time.perf_counter() - start)
    return scores


def _rows(groups: Groups, scores: dict[str, list[Score]]) -> list[dict[str, Any]]:
    samples = [(key, sample) for key, group in groups.items() for sample in group]
    return [
        {
            "prompt_set": prompt_set, "source": source, "data_id": sample.data_id, "prompt": sample.clip.prompt,
            "spans": list(sample.clip.spans), "voices": list(sample.clip.voices),
            **_answers({name: values[index] for name, values in scores.items()}),
        }
        for index, ((prompt_set, source), sample) in enumerate(samples)
    ]  # fmt: skip


def _answers(scores: dict[str, Score]) -> dict[str, Any]:
    scored = {name: score for name, score in scores.items() if not score.reason}
    return {
        "scores": {name: round(score.value, 6) if name in scored else None for name, score in scores.items()},
        "parts": {name: {part: round(value, 6) for part, value in score.parts.items()} for name, score in scored.items()},
        "texts": {name: score.text for name, score in scored.items() if score.text},
        "reasons": {name: score.reason for name, score in scores.items() if score.reason},
    }
