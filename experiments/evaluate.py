"""What the generated clips are worth: words, voices and lips beside those of real clips and of their codec round trips."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.evaluate_clips import Sample, codec_samples, generated_samples, real_samples, reference_sounds
from experiments.statistics import Interval, bootstrap_mean, bootstrap_ratio
from pretrain.codecs.base import load_codecs
from pretrain.files import replacing
from pretrain.jsonl import dump
from pretrain.progress import track
from rewards.lips import LipLoudness
from rewards.speech.recognizer import Recognizer
from rewards.speech.wer import WordErrorRate
from rewards.timbre import NearestVoice, ResemblyzerEncoder, TimbreSimilarity, VoiceBank
from rewards.types import Score

MAIN_SET = "pretrain_seen"
# prompt set -> (suffix of its metrics, kind of the real clips it is compared with; "" = none)
PROMPT_SETS = {
    MAIN_SET: ("", "speech"),
    "pretrain_heldout_pairs": ("_heldout_pairs", ""),
    "pretrain_disagree": ("_disagree", ""),
    "pretrain_dialogue": ("_dialogue", "dialogue"),
    "pretrain_camera": ("_camera", "camera"),
}
RENAMED = {"voice_accuracy_resemblyzer_disagree": "reference_wins_disagree"}
SOURCES = ("real", "codec", "generated")

log = logging.getLogger(__name__)
Scores = dict[str, list[Score]]  # by scorer, one per sample


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How clips are scored."""

    max_real_clips: int = 208  # of each kind
    vocabulary: tuple[str, ...] = ()  # empty = the words of the speech bank
    num_processes: int = 2  # of the recogniser
    seed: int = 0  # of the bootstrap


def evaluate(config: EvaluateConfig, corpus: Path, codec: Path, generated: Path, out: Path) -> dict[str, Any]:
    """Scores everything and writes `out` (`{metric: {real|codec|generated: {mean, low, high, n}}}`) and, beside it,
    `<stem>_clips.jsonl` with every clip's scores, what was heard in it, and why a score is missing.

    `corpus` and `codec` are outputs of those stages, `generated` holds one folder per prompt set; only `pretrain_seen` must
    exist. Raises FileNotFoundError or ValueError in one line; nothing is written then.
    """
    start = time.perf_counter()
    if not (generated / MAIN_SET / "index.jsonl").is_file():
        raise FileNotFoundError(f"{generated / MAIN_SET / 'index.jsonl'}: no such file; run `nava generate` on {MAIN_SET}.jsonl first")
    groups = _collect(config, corpus, codec, generated)
    log.info("evaluate: %d clips read in %.1f s", sum(map(len, groups.values())), time.perf_counter() - start)
    scored = _score_all(config, groups)
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for (prompt_set, source), scores in scored.items():
        for name, interval in summarise(scores, config.seed).items():
            metric = name + PROMPT_SETS[prompt_set][0]
            metrics.setdefault(RENAMED.get(metric, metric), {})[source] = interval.as_json()
    dump(out.with_name(f"{out.stem}_clips.jsonl"), _details(groups, scored))
    _write_json(out, metrics)
    log.info("evaluate: done in %.1f s", time.perf_counter() - start)
    return metrics


def summarise(scores: Scores, seed: int = 0) -> dict[str, Interval]:
    """One interval per metric; a metric that no clip of the group could be scored on is left out."""
    read = scores["wer_pocketsphinx"]
    intervals = {"wer_pocketsphinx": bootstrap_ratio(_part(read, "errors"), _part(read, "words"), seed)}
    for name in ("voice_accuracy_resemblyzer", "sim_resemblyzer", "lip_loudness_correlation"):
        intervals[name] = bootstrap_mean([score.value for score in scores[name]], seed)
    intervals["lip_loudness_lag_frames"] = bootstrap_mean(_part(scores["lip_loudness_correlation"], "lag_frames"), seed)
    return {name: interval for name, interval in intervals.items() if interval.n}


def _part(scores: Sequence[Score], name: str) -> list[float]:
    return [math.nan if score.reason else score.parts[name] for score in scores]


def _collect(config: EvaluateConfig, corpus: Path, codec: Path, generated: Path) -> dict[tuple[str, str], list[Sample]]:
    """(prompt set, source) -> clips."""
    real = real_samples(corpus / "validation.jsonl", config.max_real_clips)
    codecs = load_codecs(codec)
    groups: dict[tuple[str, str], list[Sample]] = {}
    for prompt_set, (_, kind) in track(PROMPT_SETS.items(), len(PROMPT_SETS), "prompt sets read"):
        if not (generated / prompt_set / "index.jsonl").is_file():
            log.warning("%s: no such prompt set among the generated clips; its metrics are left out", generated / prompt_set)
            continue
        if kind in real:
            groups[prompt_set, "real"] = real[kind]
            groups[prompt_set, "codec"] = codec_samples(real[kind], codecs)
        groups[prompt_set, "generated"] = generated_samples(generated / prompt_set, kind or "speech")
    return groups


def _score_all(config: EvaluateConfig, groups: dict[tuple[str, str], list[Sample]]) -> dict[tuple[str, str], Scores]:
    """Every scorer over all clips as one batch, then cut back into groups."""
    samples = [sample for group in groups.values() for sample in group]
    clips = [sample.clip for sample in samples]
    encoder = ResemblyzerEncoder()
    bank = _voice_bank(encoder, samples)
    all_scores: Scores = {}
    with Recognizer(config.vocabulary or _bank_words(), config.num_processes) as recognizer:
        scorers = (WordErrorRate(recognizer), NearestVoice(encoder, bank), TimbreSimilarity(encoder), LipLoudness())
        for scorer in track(scorers, len(scorers), f"scorers run on {len(clips)} clips"):
            start = time.perf_counter()
            all_scores[scorer.name] = scorer.score(clips)
            log.info("evaluate: %s, %d clips in %.1f s", scorer.name, len(clips), time.perf_counter() - start)
    scored, position = {}, 0
    for key, group in groups.items():
        scored[key] = {name: scores[position : position + len(group)] for name, scores in all_scores.items()}
        position += len(group)
    return scored


def _bank_words() -> Sequence[str]:
    from pretrain.data.corpus.bank import vocabulary

    return vocabulary()


def _voice_bank(encoder: ResemblyzerEncoder, samples: Sequence[Sample]) -> VoiceBank:
    """Voices as the real one-speaker clips and the reference recordings have them; nothing generated."""
    real = [sample for sample in samples if sample.source == "real" and len(sample.clip.voices) == 1 and sample.clip.waveform is not None]
    entries = [(sample.clip.voices[0], sample.data_id, sample.clip.waveform) for sample in real]
    for voice, sounds in reference_sounds(samples).items():
        entries += [(voice, f"reference {voice} {index}", sound) for index, sound in enumerate(sounds)]
    if not entries:
        raise ValueError("validation.jsonl: no one-speaker clip with meta.voices and no reference; voices cannot be told apart without")
    voices, names, sounds = zip(*entries, strict=True)
    return VoiceBank(voices, names, encoder.embed_voices(sounds))


def _details(groups: dict[tuple[str, str], list[Sample]], scored: dict[tuple[str, str], Scores]) -> list[dict[str, Any]]:
    rows = []
    for key, samples in groups.items():
        for index, sample in enumerate(samples):
            scores = {name: values[index] for name, values in scored[key].items()}
            rows.append({
                "prompt_set": key[0], "source": key[1], "data_id": sample.data_id, "prompt": sample.clip.prompt,
                "spans": list(sample.clip.spans), "heard": scores["wer_pocketsphinx"].text, "voices": list(sample.clip.voices),
                "nearest_voices": scores["voice_accuracy_resemblyzer"].text.split(),
                "scores": {name: None if score.reason else round(score.value, 6) for name, score in scores.items()},
                "lag_frames": None if scores["lip_loudness_correlation"].reason else scores["lip_loudness_correlation"].parts["lag_frames"],
                "reasons": {name: score.reason for name, score in scores.items() if score.reason},
            })  # fmt: skip
    return rows


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
