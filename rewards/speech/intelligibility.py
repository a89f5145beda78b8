"""A continuous intelligibility score, with a gradient where the word error rate is flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.base import Unscorable, score_prepared
from rewards.sound import mono_16khz
from rewards.speech.recognizer import Recognizer
from rewards.speech.scoring import DEFAULT
from rewards.speech.sphinx import Spot
from rewards.types import Clip, Score

# Chosen on bank words under noise, low-pass, mixing with another word and codec round trips; see
# tests/test_rewards_intelligibility.py
EVIDENCE_MIDDLE = -39.0  # nats per phone: clean words lie at -26, unspoken words at -49
EVIDENCE_WIDTH = 5.0
TEMPERATURE = 20.0  # nats
NO_EVIDENCE = -105.0  # nats per phone of a word that fits nowhere; the worst that PocketSphinx' scores can be

State = tuple[float, float, tuple[Spot | None, ...]]


@dataclass(frozen=True)
class AlignedWord:
    """A reference word where it fits best; `spot` is None when it fits nowhere.

    `clearness`: logistic of the evidence per phone; `posterior`: against the vocabulary's other words in this
    word's stretch of the sound; `score`: their geometric mean.
    """

    word: str
    spot: Spot | None
    clearness: float
    posterior: float

    @property
    def score(self) -> float:
        return math.sqrt(self.clearness * self.posterior)


class Intelligibility:
    """Mean over the reference words of sqrt(clearness x posterior), 0..1; higher is better.

    A keyword search gives each word of the vocabulary, wherever it fits, the log-likelihood of its phones
    against any phones. Clearness measures whether the sound resembles the word, posterior whether another
    word fits better; either alone stays high for some bad sounds. Words are aligned in their order.
    Score.parts: `clearness`, `posterior`, `lowest_word`; Score.text: every word with its time and score. NaN
    with a reason for a text that is not English and for words that the vocabulary does not have.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer
        self.name = f"intelligibility_{recognizer.name}"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, self._prepare, self._score)

    def _prepare(self, clip: Clip) -> tuple[list[str], np.ndarray]:
        text = " ".join(clip.spans)
        if reason := DEFAULT.refusal(text) or self.recognizer.refusal(text):
            raise Unscorable(reason)
        return DEFAULT.split(text), mono_16khz(clip)

    def _score(self, prepared: list[tuple[list[str], np.ndarray]]) -> list[Score]:
        found = self.recognizer.spot([waveform for _, waveform in prepared])
        return [
            _summary(align(words, spots, self.recognizer.num_phones))
            for (words, _), spots in zip(prepared, found, strict=True)
        ]


def align(words: Sequence[str], spots: Sequence[Spot], num_phones: dict[str, int]) -> list[AlignedWord]:
    """Each reference word at its place, chosen in word order for the largest total evidence."""
    places = _in_order(words, spots, num_phones)
    aligned = []
    for index, (word, spot) in enumerate(zip(words, places, strict=True)):
        if spot is None:
            aligned.append(AlignedWord(word, None, 0.0, 0.0))
            continue
        low = max(
            ((other.centre_s + spot.centre_s) / 2 for other in places[:index] if other), default=-math.inf
        )
        high = min(
            ((other.centre_s + spot.centre_s) / 2 for other in places[index + 1 :] if other), default=math.inf
        )
        evidence = {other: NO_EVIDENCE * phones for other, phones in num_phones.items()}
        for other in spots:
            if low <= other.centre_s <= high:
                evidence[other.word] = max(evidence[other.word], other.evidence)
        evidence[word] = spot.evidence
        logits = np.array(list(evidence.values())) / TEMPERATURE
        posterior = math.exp(spot.evidence / TEMPERATURE - logits.max()) / float(
            np.exp(logits - logits.max()).sum()
        )
        aligned.append(AlignedWord(word, spot, _clearness(spot.evidence / num_phones[word]), posterior))
    return aligned


def _in_order(words: Sequence[str], spots: Sequence[Spot], num_phones: dict[str, int]) -> list[Spot | None]:
    """Dynamic programme over (word, end time); a word's place is after the previous one, or none."""
    states: list[State] = [(-math.inf, 0.0, ())]  # (earliest start of the next word, evidence, places)
    for word in words:
        candidates = [spot for spot in spots if spot.word == word]
        grown: list[State] = [
            (free, total + NO_EVIDENCE * num_phones[word], (*path, None)) for free, total, path in states
        ]
        for spot in candidates:
            before = [(total, path) for free, total, path in states if spot.start_s >= free]
            if before:
                total, path = max(before, key=lambda state: state[0])
                grown.append((spot.end_s, total + spot.evidence, (*path, spot)))
        # of two states only one that is free earlier or has more evidence can matter
        states = []
        for state in sorted(grown, key=lambda state: (state[0], -state[1])):
            if not states or state[1] > states[-1][1]:
                states.append(state)
    return list(max(states, key=lambda state: state[1])[2])


def _clearness(evidence_per_phone: float) -> float:
    return 1.0 / (1.0 + math.exp((EVIDENCE_MIDDLE - evidence_per_phone) / EVIDENCE_WIDTH))


def _summary(aligned: Sequence[AlignedWord]) -> Score:
    scores = [word.score for word in aligned]
    parts = {
        "clearness": float(np.mean([word.clearness for word in aligned])),
        "posterior": float(np.mean([word.posterior for word in aligned])),
        "lowest_word": min(scores),
    }
    places = [
        f"{word.word}@{word.spot.start_s:.2f}-{word.spot.end_s:.2f}" if word.spot else f"{word.word}@nowhere"
        for word in aligned
    ]
    text = " ".join(f"{place}:{score:.2f}" for place, score in zip(places, scores, strict=True))
    return Score(value=float(np.mean(scores)), parts=parts, text=text)
