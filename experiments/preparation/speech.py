"""The step on the speech of a clip: how much there is, how sure its words are, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import SPEECH_RATE_HZ, RawClip, Rejection, SpokenSpan, Word, beyond
from experiments.preparation.words import MISALIGNED
from pretrain.prompt import parse

MIN_VOICE_S = 0.3  # of a span that is embedded


def spoken(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """The clip with its spans and their voices; one with too little or unsure speech is rejected."""
    seconds = sum(end - start for start, end in clip.speech)
    clip = clip.measured(speech_s=round(seconds, 3))
    if seconds < config.min_speech_s:
        reason = "too little speech; prepare.min_speech_s=0 keeps clips without any"
        return beyond("speech", "speech_s", seconds, config.min_speech_s, reason)
    if seconds < config.min_speech_share * clip.duration_s:
        share = seconds / clip.duration_s
        return beyond("speech", "speech_share", share, config.min_speech_share, "too little of it is speech")
    if seconds >= max(0.3, config.min_speech_s) and not clip.words:
        return beyond("words", "words", 0, 1, "there is speech, and no word was recognised in it")
    if clip.words_by == MISALIGNED:
        reason = "the given words are not what is said, or not all of it"
        return beyond("words", "alignment", 0.0, config.min_alignment, reason)
    if any(not word.fits for word in clip.words):
        reason = "a part of the given or recognised text is not what is said there"
        return beyond("words", "alignment", 0.0, config.min_alignment, reason)
    if clip.words and clip.words_by == "pocketsphinx":
        sure = float(np.mean([word.confidence for word in clip.words]))
        clip = clip.measured(confidence=round(sure, 4))
        if sure < config.min_confidence:
            reason = "the recogniser is not sure of the words; give transcripts, subtitles or --transcribe"
            return beyond("words", "confidence", sure, config.min_confidence, reason)
    return replace(clip, spans=_with_voices(clip, phrases(clip, config)))


def phrases(clip: RawClip, config: PrepareConfig) -> list[SpokenSpan]:
    """Stretches of words between pauses in which a speaker may change; the caption's own spans where it has
    some and they are all here."""
    wanted = [span.text for span in parse(clip.given.caption).spans]
    if wanted and (found := _as_written(clip.words, wanted)):
        return found
    spans: list[list[Word]] = []
    for word in clip.words:
        if spans and word.start_s - spans[-1][-1].end_s < config.turn_pause_s:
            spans[-1].append(word)
        else:
            spans.append([word])
    return [_span(words, " ".join(word.text for word in words)) for words in spans]


def _as_written(words: Sequence[Word], wanted: Sequence[str]) -> list[SpokenSpan] | None:
    """Spans letter by letter as the caption has them; None where the words are not exactly theirs."""
    spans, place = [], 0
    for text in wanted:
        count = len(text.split())
        of_span = list(words[place : place + count])
        if " ".join(word.text for word in of_span) != " ".join(text.split()):
            if len(words) == len(wanted) and [word.text for word in words] == list(wanted):
                return [_span([word], word.text) for word in words]
            return None
        spans.append(_span(of_span, text))
        place += count
    return spans if place == len(words) else None


def _span(words: Sequence[Word], text: str) -> SpokenSpan:
    return SpokenSpan(text, words[0].start_s, max(words[-1].end_s, words[0].start_s + 0.01))


def _with_voices(clip: RawClip, spans: Sequence[SpokenSpan]) -> tuple[SpokenSpan, ...]:
    sounds = [
        clip.mono[round(span.start_s * SPEECH_RATE_HZ) : round(span.end_s * SPEECH_RATE_HZ)] for span in spans
    ]
    long = [
        i for i, sound in enumerate(sounds) if len(sound) >= MIN_VOICE_S * SPEECH_RATE_HZ and np.any(sound)
    ]
    voices = dict(zip(long, _encoder().embed([sounds[i] for i in long]), strict=True)) if long else {}
    return tuple(
        replace(span, voice=tuple(round(float(value), 5) for value in voices[i]) if i in voices else ())
        for i, span in enumerate(spans)
    )


@cache
def _encoder() -> Any:
    from rewards.timbre.resemblyzer import ResemblyzerEncoder

    return ResemblyzerEncoder()
