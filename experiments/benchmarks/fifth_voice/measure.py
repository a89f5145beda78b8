"""Clips of a base model and of its fine-tunings, and what is measured on their voices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks.fifth_voice.voice import VOICE, add_voice
from experiments.benchmarks.fifth_voice.world import CHOOSING, PROMPTS_FOLDER, REFERENCES_FOLDER
from experiments.scoring.clips import INDEX, index_clips, load_clip
from finetune.adapters import MergedAdapters, ScaledAdapter, check_adapter
from pretrain.codecs.load import load_codecs
from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.plan import SHORT_FRAMES, Turn
from pretrain.data.corpus.sound import num_samples, spoken
from pretrain.files import sha256_of
from pretrain.generate import GenerateConfig, generate
from pretrain.jsonl import dump
from pretrain.launch.stage_run import model_config
from pretrain.media.read import read_media
from rewards.base import Reward
from rewards.speech.recognizer import Recognizer
from rewards.speech.settings import JUDGE, REWARD
from rewards.speech.wer import WordErrorRate
from rewards.timbre.encoder import VoiceEncoder
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.similarity import TimbreSimilarity
from rewards.timbre.voices import NearestVoice, VoiceBank
from rewards.types import Clip, Score

ScoredClips = list[tuple[float, float] | None]  # of each clip (value, 1) or (errors, words); None = unscored
_ONSET_S = 0.15
_OLD_PROMPTS = "pretrain_seen.jsonl"


@dataclass(frozen=True)
class Trained:
    """Of a demo: the model that fine-tunings started from, its codec and corpus."""

    model: Path
    codec: Path
    corpus: Path


class VoiceScores:
    """Similarity to the voice, nearest of the five voices, word errors by both recognisers."""

    def __init__(self) -> None:
        add_voice()
        self.encoder, words = ResemblyzerEncoder(), load_bank().words
        self.bank = _five_voices(self.encoder)
        self.rewards: list[Reward] = [
            TimbreSimilarity(self.encoder),
            NearestVoice(self.encoder, self.bank),
            *(WordErrorRate(Recognizer(words, settings=settings)) for settings in (REWARD, JUDGE)),
        ]

    def of(self, clips: Sequence[Clip]) -> dict[str, ScoredClips]:
        """By metric, in the order of the clips, each of one voice."""
        scores = {reward.name: [_terms(score) for score in reward.score(clips)] for reward in self.rewards}
        return {"voice_similarity_resemblyzer": self._similarities(clips), **scores}

    def _similarities(self, clips: Sequence[Clip]) -> ScoredClips:
        """Cosine to the mean of the recordings of the voice that a clip should have, without the clip itself.

        A reference has several words and next to no silence, which moves the embedding of one voice further
        than another voice does; single words in a clip's silence can be compared.
        """
        embeddings = self.encoder.embed([clip.waveform for clip in clips if clip.waveform is not None])
        terms: ScoredClips = []
        for clip, embedding in zip(clips, embeddings, strict=True):
            kept = [
                voice == clip.voices[0] and name != clip.name
                for voice, name in zip(self.bank.voices, self.bank.names, strict=True)
            ]
            mean = self.bank.embeddings[kept].mean(0)
            terms.append((float(embedding @ mean / np.linalg.norm(mean)), 1.0))
        return terms


def real_clips(world: Path, words: Sequence[str]) -> list[Clip]:
    """The new voice's own recordings of these words, as clips with a reference."""
    references = [
        read_media(path, want_video=False, sample_rate_hz=SAMPLE_RATE_HZ).waveform
        for path in sorted((world / REFERENCES_FOLDER).glob("*.wav"))
    ]
    return [
        Clip(
            waveform=_alone(word, VOICE, take),
            sample_rate_hz=SAMPLE_RATE_HZ,
            spans=(word,),
            references=(references[number % len(references)],),
            voices=(VOICE,),
            name=f"{VOICE} {word} {take}",
        )
        for number, word in enumerate(words)
        for take in range(len(load_bank().utterances[word, VOICE]))
    ]


def through_codec(clips: Sequence[Clip], codec: Path) -> list[Clip]:
    """The same clips, their sound encoded and decoded."""
    audio = load_codecs(codec).audio
    sounds = np.stack([clip.waveform for clip in clips if clip.waveform is not None])
    decoded = audio.decode(audio.encode(torch.from_numpy(sounds))).numpy()
    return [dataclasses.replace(clip, waveform=sound) for clip, sound in zip(clips, decoded, strict=True)]


def old_prompts(corpus: Path, world: Path, name: str) -> Path:
    """Every second prompt of `pretrain_seen`: of those that chose the settings the first, else the second."""
    folder = corpus / "prompts"
    rows = [json.loads(line) for line in (folder / _OLD_PROMPTS).read_text().splitlines()]
    chosen = rows[0 if name == CHOOSING else 1 :: 2]
    for row in chosen:
        row["spk_wavs"] = [str((folder / path).resolve()) for path in row["spk_wavs"]]
    path = world / PROMPTS_FOLDER / f"old-{name}.jsonl"
    dump(path, chosen)
    return path


def clips_of(
    trained: Trained, prompts: Path, adapter: Path | None, to: Path, config: GenerateConfig
) -> list[Clip]:
    """Clips of the base, or of an adapter of it, in a folder below `to`; what is there already is kept."""
    mark = check_adapter(adapter, trained.model).adapter_id if adapter else "base"
    base = str(model_config(trained.model)["checkpoint_id"])
    folder = to / f"{base}-{mark}-{prompts.stem}-{sha256_of(prompts)[:8]}-{config.seed}"
    scaled = (ScaledAdapter(adapter),) if adapter else ()
    change = MergedAdapters(trained.model, config.weights, scaled)
    generate(config, trained.model, trained.codec, prompts, folder, change=change)
    return [load_clip(clip) for clip in index_clips(folder / INDEX)]


def _five_voices(encoder: VoiceEncoder) -> VoiceBank:
    """All recordings of the five voices, each alone in a clip's sound."""
    takes = [
        (voice, word, take)
        for (word, voice), recordings in load_bank().utterances.items()
        for take in range(len(recordings))
    ]
    return VoiceBank(
        tuple(voice for voice, _, _ in takes),
        tuple(f"{voice} {word} {take}" for voice, word, take in takes),
        encoder.embed([_alone(word, voice, take) for voice, word, take in takes]),
    )


def _alone(word: str, voice: str, take: int) -> np.ndarray:
    return spoken(Turn(word, voice, "", take, _ONSET_S, ""), num_samples(SHORT_FRAMES))


def _terms(score: Score) -> tuple[float, float] | None:
    if score.reason:
        return None
    return (score.parts["errors"], score.parts["words"]) if "words" in score.parts else (score.value, 1.0)
