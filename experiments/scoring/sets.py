"""Score real, codec and generated clips with every scorer of the pipeline, one row per clip."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from experiments.scoring.options import reward_options
from experiments.scoring.rows import flat_guardrails, flat_scores
from experiments.scoring.samples import SourceClip, codec_samples, generated_samples, real_samples
from experiments.scoring.score import guarded, scores_of
from experiments.scoring.voice_bank import timbre_encoder, voice_bank
from pretrain.codecs.load import load_codecs
from pretrain.data.corpus.texts import ALIGN_HELD_OUT
from pretrain.jsonl import dump
from pretrain.progress import track
from rewards.catalog import is_plugin, metrics_of, open_rewards
from rewards.guardrails import GuardrailLimits
from rewards.options import fill
from rewards.timbre.voices import NearestVoice
from rewards.types import Score

MAIN_SET = "pretrain_seen"
# the same prompts and seeds before (source generated) and after alignment (source aligned)
ALIGN_SET = ALIGN_HELD_OUT
CAMERA_SET = "pretrain_camera"
HELD_OUT_PAIRS_SET = "pretrain_heldout_pairs"  # words in voices that never said them in training
# the same dialogues; in the second each turn has the other's reference
DIALOGUE_SET, EXCHANGED_SET = "pretrain_dialogue", "pretrain_dialogue_exchanged"
# prompt set -> kind of the real clips it is compared with; "" = no comparison
PROMPT_SETS = {
    MAIN_SET: "speech",
    HELD_OUT_PAIRS_SET: "",
    "pretrain_disagree": "",
    DIALOGUE_SET: "dialogue",
    EXCHANGED_SET: "dialogue",
    CAMERA_SET: "camera",
    "pretrain_t2a": "",  # sound alone; of pictures alone nothing is measured
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
ALIGN_JUDGES = ("intelligibility_pocketsphinx_judge", "picture_noise_judge")
VOICES = "voice_accuracy_resemblyzer"  # with the corpus' clips as voice bank, not a folder of recordings
WATCHED = ((MAIN_SET, "codec"), (ALIGN_SET, "generated"), (ALIGN_SET, "aligned"))

log = logging.getLogger(__name__)
Groups = dict[tuple[str, str], list[SourceClip]]  # by prompt set and source (real, codec or generated)
ByScorer = Mapping[str, Mapping[tuple[str, str], Sequence[Score]]]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Clips to score, and rewards of the catalog or plug-ins.

    `align_judges` score alignment's clips and their codec baseline, `rewards` all clips.
    """

    rewards: tuple[str, ...] = (*REWARDS, VOICES)
    align_judges: tuple[str, ...] = ALIGN_JUDGES
    max_real_clips: int = 208  # of each kind
    vocabulary: tuple[str, ...] = ()  # empty = the words of the speech bank
    num_processes: int = 2  # of the recogniser


def score_sets(
    config: ScoreConfig,
    corpus: Path,
    codec: Path,
    syncnet: Path,
    generated: Path,
    out: Path,
    aligned: Path | None = None,
    limits: Mapping[str, float] = {},
) -> Path:
    """Write `out/clips.jsonl`: set, source, prompt, transcript, values, parts and reasons per clip.

    `corpus`, `codec` and `syncnet` are outputs of those stages, `generated` holds one folder per prompt set;
    only `pretrain_seen` must exist. `aligned` is such a folder of the aligned model; where it and `generated`
    both have align_held_out, those clips and the codec's of `pretrain_seen` get `align_judges` too,
    `guardrails` and the `flags` of `limits` (align.guardrails) they are beyond. Raises FileNotFoundError or
    ValueError in one line; nothing is written then.
    """
    start, bounds = time.perf_counter(), fill(GuardrailLimits, limits, "align.guardrails")
    metrics_of((*config.rewards, *config.align_judges))  # raises for unknown names before anything is read
    check_generated(generated)
    groups = _collect(config, corpus, codec, generated) | _aligned(generated, aligned)
    log.info("score: %d clips read in %.1f s", sum(map(len, groups.values())), time.perf_counter() - start)
    dump(out / SCORES, rows_of(bounds, groups, _score_all(config, groups, corpus, syncnet), _watched(groups)))
    log.info("score: done in %.1f s", time.perf_counter() - start)
    return out / SCORES


def check_generated(generated: Path) -> None:
    """Raises FileNotFoundError where the one set that has to be there is not."""
    index = generated / MAIN_SET / "index.jsonl"
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no such file; run `nava generate` on {MAIN_SET}.jsonl first")


def _collect(config: ScoreConfig, corpus: Path, codec: Path, generated: Path) -> Groups:
    real = real_samples(corpus / "validation.jsonl", config.max_real_clips)
    codecs = load_codecs(codec)
    groups: Groups = {}
    for prompt_set, kind in track(PROMPT_SETS.items(), len(PROMPT_SETS), "prompt sets read"):
        if not (generated / prompt_set / "index.jsonl").is_file():
            log.warning(
                "%s: no such prompt set among the generated clips; its metrics are left out",
                generated / prompt_set,
            )
            continue
        if kind in real:
            groups[prompt_set, "real"] = real[kind]
            groups[prompt_set, "codec"] = codec_samples(real[kind], codecs)
        groups[prompt_set, "generated"] = generated_samples(generated / prompt_set, kind or "speech")
    return groups


def _aligned(generated: Path, aligned: Path | None) -> Groups:
    """The held-out prompts before and after alignment; empty if one of the two is missing."""
    if aligned is None:
        return {}
    for folder in (generated / ALIGN_SET, aligned / ALIGN_SET):
        if not (folder / "index.jsonl").is_file():
            log.warning(
                "%s: no such prompt set among the generated clips; before and after alignment is left out",
                folder,
            )
            return {}
    sources = {"generated": generated, "aligned": aligned}
    return {
        (ALIGN_SET, source): generated_samples(root / ALIGN_SET, "speech", source=source)
        for source, root in sources.items()
    }


def _watched(groups: Groups) -> list[tuple[str, str]]:
    return [key for key in WATCHED if key in groups] if (ALIGN_SET, "aligned") in groups else []


def _score_all(
    config: ScoreConfig, groups: Groups, corpus: Path, syncnet: Path
) -> dict[str, dict[tuple[str, str], list[Score]]]:
    """Run every scorer once over all of its groups' clips as one batch: by scorer and group."""
    scores = {}
    requested = dict.fromkeys((*config.rewards, *(config.align_judges if _watched(groups) else ())))
    names = [name for name in requested if name != VOICES]
    options = reward_options(names, corpus, syncnet, config.vocabulary, config.num_processes)
    # alignment's own references are excluded, so that voices of the other sets do not depend on them
    pretrained = [
        sample for (prompt_set, _), group in groups.items() for sample in group if prompt_set != ALIGN_SET
    ]
    with open_rewards(names, options) as opened:
        rewards = dict(zip(names, opened, strict=True))
        if VOICES in requested:
            encoder = timbre_encoder(opened)
            bank = voice_bank(encoder, pretrained, corpus / "validation.jsonl")
            rewards[VOICES] = NearestVoice(encoder, bank)
        about = f"scorers run on {sum(map(len, groups.values()))} clips"
        for name, reward in track(rewards.items(), len(rewards), about):
            start = time.perf_counter()
            keys = list(groups) if name in config.rewards else _watched(groups)
            scorer = reward.name if is_plugin(name) else name
            answers = iter(scores_of(scorer, reward, [s.clip for key in keys for s in groups[key]]))
            scores[scorer] = {key: list(islice(answers, len(groups[key]))) for key in keys}
            log.info(
                "score: %s, %d clips in %.1f s",
                scorer,
                sum(len(groups[key]) for key in keys),
                time.perf_counter() - start,
            )
    return scores


def rows_of(
    limits: GuardrailLimits, groups: Groups, scores: ByScorer, watched: Container[tuple[str, str]]
) -> list[dict[str, Any]]:
    """A row per clip from scores by scorer and group; measures guardrails of the groups in `watched`."""
    return [
        {
            "prompt_set": key[0],
            "source": key[1],
            "data_id": sample.data_id,
            "prompt": sample.clip.prompt,
            "spans": list(sample.clip.spans),
            "voices": list(sample.clip.voices),
            **flat_scores(
                {name: by_group[key][index] for name, by_group in scores.items() if key in by_group}
            ),
            **(flat_guardrails(*guarded(sample.clip, limits)) if key in watched else {}),
        }
        for key, group in groups.items()
        for index, sample in enumerate(group)
    ]
