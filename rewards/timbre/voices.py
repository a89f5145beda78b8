"""Nearest-voice accuracy against a bank of known voices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.base import Unscorable, score_prepared
from rewards.timbre.encoder import VoiceEncoder
from rewards.timbre.spans import spoken
from rewards.types import Clip, Score


@dataclass(frozen=True)
class VoiceBank:
    """Embeddings of real utterances with their speakers; a voice is the mean of its utterances."""

    voices: tuple[str, ...]  # the speaker of each utterance
    names: tuple[str, ...]  # the utterance's own name, so that it can be left out
    embeddings: np.ndarray  # float32 [M, D]

    def nearest(self, embeddings: np.ndarray, leave_out: Sequence[str | None] | None = None) -> list[str]:
        """The voice with the largest cosine to each of [B, D]; `leave_out` names utterances to exclude."""
        known = sorted(set(self.voices))
        sums = np.stack(
            [self.embeddings[[voice == other for other in self.voices]].sum(axis=0) for voice in known]
        )
        index = {name: i for i, name in enumerate(self.names)}
        answers = []
        for embedding, name in zip(embeddings, leave_out or [None] * len(embeddings), strict=True):
            centroids = sums.copy()
            if name is not None and name in index:
                centroids[known.index(self.voices[index[name]])] -= self.embeddings[index[name]]
            lengths = np.maximum(np.linalg.norm(centroids, axis=1), 1e-12)
            answers.append(known[int(np.argmax(centroids @ embedding / lengths))])
        return answers


class NearestVoice:
    """Share of a clip's spans in whose sound the wanted voice is the nearest of the bank's; higher is better.

    Score.text names the nearest voice of each span. The clip's own entry in the bank (same name) is left out.
    """

    def __init__(self, encoder: VoiceEncoder, bank: VoiceBank) -> None:
        self.encoder, self.bank = encoder, bank
        self.name = f"voice_accuracy_{encoder.name}"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """NaN with a reason if the target voice is unset, not in the bank, or the sound is unusable."""
        return score_prepared(clips, self._prepare, self._score)

    def _prepare(self, clip: Clip) -> tuple[Clip, list[np.ndarray]]:
        if unknown := set(clip.voices) - set(self.bank.voices):
            raise Unscorable(f"voices {sorted(unknown)} are not in the bank")
        if len(clip.voices) != max(1, len(clip.spans)):
            raise Unscorable(f"{len(clip.voices)} voices for {len(clip.spans)} spans")
        return clip, spoken(clip)

    def _score(self, prepared: list[tuple[Clip, list[np.ndarray]]]) -> list[Score]:
        names = [clip.name for clip, sounds in prepared for _ in sounds]
        nearest = iter(
            self.bank.nearest(
                self.encoder.embed([sound for _, sounds in prepared for sound in sounds]), names
            )
        )
        scores = []
        for clip, sounds in prepared:
            nearest_names = [next(nearest) for _ in sounds]
            right = sum(one == other for one, other in zip(nearest_names, clip.voices, strict=True))
            scores.append(Score(value=right / len(nearest_names), text=" ".join(nearest_names)))
        return scores
