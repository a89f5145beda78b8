"""Word error rate of a clip and of a set."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import numpy as np

from rewards.base import Unscorable, score_prepared
from rewards.sound import mono_16khz
from rewards.speech.recognizer import Recognizer
from rewards.speech.scoring import normalize
from rewards.types import Clip, Score


class WordErrorRate:
    """(substitutions + deletions + insertions) / reference words of all spans of a clip; lower is better, may exceed 1.

    Score.text is what was heard, Score.parts has `errors` and `words`. The rate of a set is the sum of errors over the sum
    of words (`set_word_error_rate`), not the mean of rates.
    """

    name = "wer_pocketsphinx"

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """NaN with a reason without speech text or without usable sound."""
        return score_prepared(clips, _prepare, self._score)

    def _score(self, prepared: list[tuple[str, np.ndarray]]) -> list[Score]:
        heard = self.recognizer.transcribe([waveform for _, waveform in prepared])
        return [word_errors(reference, hypothesis) for (reference, _), hypothesis in zip(prepared, heard, strict=True)]


def word_errors(reference: str, hypothesis: str) -> Score:
    """WER of one hypothesis with its `errors` and `words`; ValueError for a reference without words."""
    words = normalize(reference).split()
    if not words:
        raise ValueError("the reference has no words; WER is not defined")
    # jiwer's alignment of an empty hypothesis is the deletion of every word
    output = jiwer.process_words(" ".join(words), normalize(hypothesis))
    errors = output.substitutions + output.deletions + output.insertions
    return Score(value=errors / len(words), parts={"errors": float(errors), "words": float(len(words))}, text=hypothesis)


def set_word_error_rate(scores: Sequence[Score]) -> float:
    """Errors over words of all scored clips; NaN when none was scored."""
    scored = [score for score in scores if not score.reason]
    words = sum(score.parts["words"] for score in scored)
    return sum(score.parts["errors"] for score in scored) / words if words else float("nan")


def _prepare(clip: Clip) -> tuple[str, np.ndarray]:
    reference = normalize(" ".join(clip.spans))
    if not reference:
        raise Unscorable("the prompt has no speech text")
    return reference, mono_16khz(clip)
