"""Word error rate of a clip and of a set, by any recogniser and any benchmark's scoring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jiwer
import numpy as np

from rewards.base import Interruptible, Unscorable, score_prepared
from rewards.sound import mono_16khz
from rewards.speech.scoring import DEFAULT, WerConvention
from rewards.speech.scripts import named, scripts, scripts_of
from rewards.speech.transcriber import Transcriber
from rewards.types import Clip, Score


class WordErrorRate:
    """Word error rate over all spans of a clip: (S + D + I) / reference words; lower is better, may exceed 1.

    S, D, I: substitutions, deletions, insertions. Score.text is the transcript, Score.parts has `errors` and
    `words`. The rate of a set is `set_word_error_rate` or `mean_word_error_rate`; `reported_word_error_rate`
    takes the one that the scoring's benchmark publishes.
    """

    def __init__(self, transcriber: Transcriber, scoring: WerConvention = DEFAULT) -> None:
        self.transcriber = transcriber
        self.scoring = scoring
        self.name = metric_name(transcriber.name, scoring)

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """NaN with a reason without speech text or usable sound, for a text that the scoring cannot count or
        the recogniser cannot hear, and for an answer in the script of another language (`other_language`)."""
        return score_prepared(clips, self._prepare, self._score)

    def interrupt(self) -> None:
        """Wait no longer for a server that transcribes; safe in a signal handler."""
        if isinstance(self.transcriber, Interruptible):
            self.transcriber.interrupt()

    def _prepare(self, clip: Clip) -> tuple[str, np.ndarray]:
        reference = " ".join(clip.spans)
        if reason := self.scoring.refusal(reference) or refusal_of(self.transcriber, reference):
            raise Unscorable(reason)
        return reference, mono_16khz(clip)

    def _score(self, prepared: list[tuple[str, np.ndarray]]) -> list[Score]:
        transcripts = self.transcriber.transcribe([waveform for _, waveform in prepared])
        return [
            self._score_text(reference, text)
            for (reference, _), text in zip(prepared, transcripts, strict=True)
        ]

    def _score_text(self, reference: str, text: str) -> Score:
        if reason := other_language(getattr(self.transcriber, "language", ""), reference, text):
            return Score(value=math.nan, reason=reason, text=text)
        return word_errors(reference, text, self.scoring)


def refusal_of(transcriber: Transcriber, text: str) -> str:
    """Why a recogniser cannot hear a text's words; "" where it can, or does not say."""
    refusal = getattr(transcriber, "refusal", None)
    return refusal(text) if refusal is not None else ""


def other_language(language: str, reference: str, heard: str) -> str:
    """The reason why words heard by a recogniser set to `language` say nothing about the reference, or "".

    Such a recogniser translates or transliterates: neither its language nor its answer is in a script of the
    reference.
    """
    said, answered = scripts(reference), scripts(heard)
    if not (language and said and answered) or said & (answered | set(scripts_of(language))):
        return ""
    return (
        f"the recogniser is set to language {language}, and the text is in {named(reference)}; set .language"
    )


def metric_name(recogniser: str, scoring: WerConvention) -> str:
    """`wer_<recogniser>[_<scoring>]`; `wer_<scoring>` only with the benchmark's own recogniser."""
    if scoring.recogniser and scoring.recogniser == recogniser:
        return f"wer_{scoring.name}"
    return "_".join(filter(None, ("wer", recogniser, scoring.name)))


def word_errors(reference: str, hypothesis: str, scoring: WerConvention = DEFAULT) -> Score:
    """WER of one hypothesis with its `errors` and `words`; ValueError for a reference without words."""
    words = scoring.split(reference)
    if not words:
        raise ValueError("the reference has no words; WER is not defined")
    # jiwer's alignment of an empty hypothesis is the deletion of every word
    output = jiwer.process_words(" ".join(words), " ".join(scoring.split(hypothesis)))
    errors = output.substitutions + output.deletions + output.insertions
    return Score(
        value=errors / len(words),
        parts={"errors": float(errors), "words": float(len(words))},
        text=hypothesis,
    )


def set_word_error_rate(scores: Sequence[Score]) -> float:
    """Errors over words of all scored clips; NaN when none was scored."""
    scored = [score for score in scores if not score.reason]
    words = sum(score.parts["words"] for score in scored)
    return sum(score.parts["errors"] for score in scored) / words if words else math.nan


def mean_word_error_rate(scores: Sequence[Score]) -> float:
    """Unweighted mean of the clips' rates; NaN when none was scored."""
    values = [score.value for score in scores if not score.reason]
    return sum(values) / len(values) if values else math.nan


def reported_word_error_rate(scores: Sequence[Score], scoring: WerConvention) -> float:
    """The statistic of a set that the benchmark publishes.

    Seed-TTS eval: mean of clips, percent, 3 digits.
    """
    rate = (mean_word_error_rate if scoring.mean_of_clips else set_word_error_rate)(scores)
    return round(100 * rate, 3) if scoring.percent else rate
