"""The rows of the two benchmarks' tables: which score each published metric is, of which cases, and on which
scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.paper.layouts import BenchItem
from rewards.catalog import CATALOG, is_plugin

Eligible = Callable[[BenchItem], bool]


@dataclass(frozen=True)
class PublishedMetric:
    """`score` is the reward (or `reward.part`) that may be called `label`; nothing else may. `needs` says how
    to get it."""

    label: str
    score: str
    needs: str
    eligible: Eligible
    higher_is_better: bool = True
    scale: float = 1.0


def _in(*subsets: str, also: Eligible = lambda item: True) -> Eligible:
    return lambda item: item.subset in subsets and also(item)


def _speaks(item: BenchItem) -> bool:
    return bool(item.speech)


def _sounds(item: BenchItem) -> bool:
    return bool(item.sounds)


def _any(item: BenchItem) -> bool:
    return True


SYNC = "syncnet.weights with crops of the published detector"
AUDIOBOX = "audiobox_pq.weights"
CLAP = "the CLAP folder"
VERSE_BENCH: tuple[PublishedMetric, ...] = (
    PublishedMetric("Sync-C", "syncnet.sync_c", SYNC, _speaks),
    PublishedMetric("Sync-D", "syncnet.sync_d", SYNC, _speaks, higher_is_better=False),
    PublishedMetric("IB", "imagebind_av_cosine", "an ImageBind plug-in", _any),
    PublishedMetric("AS", "aesthetics", "a plug-in with SigLIP aesthetics, MUSIQ and MANIQA", _any),
    PublishedMetric("ID", "identity_dinov3", "a DINOv3 plug-in", lambda item: item.image is not None),
    PublishedMetric(
        "WER",
        "wer_verse_bench",
        "SenseVoice, as a transcriber called sensevoice_small",
        _speaks,
        higher_is_better=False,
    ),
    PublishedMetric("PQ", "audiobox_pq", AUDIOBOX, _in("set1", "set2")),
    PublishedMetric(
        "FD", "fd_verse_bench", "fd_verse_bench.weights", _in("set2", also=_sounds), higher_is_better=False
    ),
    PublishedMetric("KL", "kl_passt", "a PaSST plug-in", _in("set2", also=_sounds), higher_is_better=False),
    PublishedMetric("CS", "clap_text_cosine", "clap_text_cosine.weights", _in("set1", "set2", also=_sounds)),
    PublishedMetric("CE", "audiobox_pq.ce", AUDIOBOX, _in("set1", "set2")),
    PublishedMetric("CU", "audiobox_pq.cu", AUDIOBOX, _in("set1", "set2")),
    PublishedMetric("PC", "audiobox_pq.pc", AUDIOBOX, _in("set1", "set2"), higher_is_better=False),
    PublishedMetric(
        "AV-A", "av_a", "a Synchformer plug-in", _in("set1", "set2", also=_sounds), higher_is_better=False
    ),
)


def seed_tts(language: str) -> tuple[PublishedMetric, ...]:
    """WER in percent (characters for zh) and SIM x100, both means over utterances."""
    recogniser = {
        "en": "wer_whisper.weights, .name=whisper_large_v3, .scoring=seed_tts_en",
        "zh": "Paraformer, as paraformer_zh",
    }[language]
    return (
        PublishedMetric(
            "WER", f"wer_seed_tts_{language}", recogniser, _speaks, higher_is_better=False, scale=100.0
        ),
        PublishedMetric(
            "SIM",
            "sim",
            "sim_wavlm_ecapa.weights with the published sha256",
            lambda item: item.voice is not None,
            scale=100.0,
        ),
    )


# What is measured per clip; FVD, KVD and FAD are of sets, and need features of the benchmark's own clips.
JAVISBENCH: tuple[PublishedMetric, ...] = (
    PublishedMetric("TV-IB", "imagebind_tv_cosine", "an ImageBind plug-in", _any),
    PublishedMetric("TA-IB", "imagebind_ta_cosine", "an ImageBind plug-in", _any),
    PublishedMetric("CLIP", "clip_javisbench", "a plug-in with the benchmark's CLIP", _any),
    PublishedMetric("CLAP", "clap_javisbench", "a plug-in with the benchmark's CLAP", _any),
    PublishedMetric("AV-IB", "imagebind_av_cosine", "an ImageBind plug-in", _any),
    PublishedMetric("CAVP", "cavp_javisbench", "a plug-in with Diff-Foley's CAVP", _any),
    PublishedMetric("AVHScore", "avh_score", "an ImageBind plug-in", _any),
    PublishedMetric("JavisScore", "javis_score", "an ImageBind plug-in", _any),
    PublishedMetric("DeSync", "desync", "a Synchformer plug-in", _any, higher_is_better=False),
)


def eligible_for(reward: str, item: BenchItem) -> bool:
    """Whether a case asks for what a reward of the catalog judges; plug-ins are asked about every case."""
    about = "any" if is_plugin(reward) or reward not in CATALOG else CATALOG[reward].about
    given = {
        "any": True,
        "speech": bool(item.speech.strip()),
        "voice": item.voice is not None,
        "reference": item.reference_sound is not None,
        "text": bool(item.sounds),
        "image": item.image is not None,
    }
    return given[about]


def looks_at_frames(reward: str) -> bool:
    """Rewards of the sound alone are given the wav, as the benchmarks do; plug-ins the video."""
    return is_plugin(reward) or CATALOG[reward].picture


def rewards_with_options(rewards: Sequence[str], settings: Sequence[str]) -> tuple[str, ...]:
    """The rewards asked for, and those of the catalog that `--set` gives something to."""
    named = [setting.partition("=")[0].rpartition(".")[0] for setting in settings]
    return tuple(dict.fromkeys([*rewards, *(name for name in named if name in CATALOG)]))
