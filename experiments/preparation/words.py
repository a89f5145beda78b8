"""Words with their times: PocketSphinx recognises, or aligns a text that is given. Its English model is in
its wheel."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.edges import snapped
from experiments.preparation.records import SPEECH_RATE_HZ, GivenText, Heard, Stretch, Word
from experiments.preparation.services import transcriber
from pretrain.prompt import parse
from rewards.speech.folding import fold, split_words
from rewards.speech.transcriber import Transcriber

FRAME_S = 0.01
ROOM_S = 0.2  # around a stretch of speech or a cue
LOUD_DB = 30.0  # below the loudest speech; what is quieter is a pause
UNALIGNED, MISALIGNED = "unaligned", "misaligned"  # words that cannot be checked; words that are not said
EDGE_S = 0.1  # of a stretch of speech, which detectors make too long
SCORED_S = 3.0  # of words, for which scores of alignments are given


def sphinx(waveform: np.ndarray, speech: Sequence[Stretch], given: GivenText, config: PrepareConfig) -> Heard:
    """The words of [N] at 16 kHz: a given text aligned where it fits, else what is recognised (English)."""
    heard = _found(waveform, speech, given, config)
    return replace(heard, words=tuple(snapped(heard.words, waveform, speech)))


def _found(waveform: np.ndarray, speech: Sequence[Stretch], given: GivenText, config: PrepareConfig) -> Heard:
    if given.cues:
        return _of_cues(waveform, speech, given, config)
    text = given.transcript or " ".join(span.text for span in parse(given.caption).spans)
    if text:
        words, score = aligned(waveform, text)
        if score >= config.min_alignment and _coverage(words, speech) >= config.min_coverage:
            return Heard(tuple(words), tuple(speech), "alignment", alignment=score)
        return _whole(waveform, speech, text, score)
    if (hearing := transcriber()) is not None:
        return _transcribed(waveform, speech, hearing, config)
    return Heard(tuple(recognised(waveform, speech)), tuple(speech), "pocketsphinx")


def _transcribed(
    waveform: np.ndarray, speech: Sequence[Stretch], hearing: Transcriber, config: PrepareConfig
) -> Heard:
    """Texts of a recogniser for each stretch of speech, with the times that PocketSphinx finds for them."""
    sounds = [
        waveform[round(start_s * SPEECH_RATE_HZ) : round(end_s * SPEECH_RATE_HZ)] for start_s, end_s in speech
    ]
    texts = hearing.transcribe(sounds) if sounds else []
    cues = tuple(
        (start_s, end_s, " ".join(text.split()))
        for (start_s, end_s), text in zip(speech, texts, strict=True)
        if re.search(r"\w", text)
    )
    if not cues:
        return Heard((), tuple(speech), hearing.name)
    return replace(_of_cues(waveform, speech, GivenText(cues=cues), config), by=hearing.name)


def recognised(waveform: np.ndarray, speech: Sequence[Stretch]) -> list[Word]:
    """What PocketSphinx hears in each stretch of speech."""
    words: list[Word] = []
    for start_s, end_s in speech:
        offset = max(0.0, start_s - ROOM_S)
        sound = waveform[round(offset * SPEECH_RATE_HZ) : round((end_s + ROOM_S) * SPEECH_RATE_HZ)]
        if not len(sound):
            continue
        decoder = _decoded(_recogniser(), sound)
        if decoder.hyp() is None:
            continue
        for segment in decoder.seg():
            text = re.sub(r"\(\d+\)$", "", segment.word)
            if re.match(r"[<\[(+]", text):
                continue
            words.append(Word(text, offset + segment.start_frame * FRAME_S, *_end(segment, offset)))
    return words


def aligned(waveform: np.ndarray, text: str) -> tuple[list[Word], float]:
    """The written words of a text with their times, and how well they fit: the score of 3 s of words, 0..1.

    Words that PocketSphinx cannot pronounce lie between their neighbours with confidence 0. ([], 0.0) for a
    text that does not fit at all and for no sound, ([], nan) for one of words that it does not know, as of
    another language.
    """
    written = text.split()
    spoken = [split_words(fold(word)) for word in written]
    decoder = _aligner()
    known = [[part for part in parts if decoder.lookup_word(part)] for parts in spoken]
    whole = [len(found) == len(parts) for found, parts in zip(known, spoken, strict=True)]
    flat = [part for parts, all_known in zip(known, whole, strict=True) if all_known for part in parts]
    if not flat or len(flat) < 0.5 * sum(map(len, spoken)):
        return [], math.nan
    if not len(waveform):
        return [], 0.0
    try:
        decoder.set_align_text(" ".join(flat))
        _decoded(decoder, waveform)
    except RuntimeError:
        return [], 0.0
    hypothesis = decoder.hyp()
    if hypothesis is None:
        return [], 0.0
    times = [
        (segment.start_frame * FRAME_S, (segment.end_frame + 1) * FRAME_S)
        for segment in decoder.seg()
        if not re.match(r"[<\[(+]", segment.word)
    ]
    if len(times) != len(flat):
        return [], 0.0
    seconds = sum(end_s - start_s for start_s, end_s in times)
    score = float(hypothesis.best_score) ** (SCORED_S / max(seconds, 0.1))  # it falls with the length
    return _placed(written, known, whole, times), score


def _coverage(words: Sequence[Word], speech: Sequence[Stretch]) -> float:
    """Share of the speech that the words cover, 0..1."""
    inner = [(start + EDGE_S, end - EDGE_S) for start, end in speech if end - start > 3 * EDGE_S]
    seconds = sum(end - start for start, end in inner)
    covered = sum(
        max(0.0, min(end, word.end_s) - max(start, word.start_s)) for start, end in inner for word in words
    )
    return covered / seconds if seconds else 1.0


def _placed(
    written: list[str], known: list[list[str]], whole: list[bool], times: list[Stretch]
) -> list[Word]:
    words: list[Word] = []
    place, pending = 0, list[str]()
    for text, parts, all_known in zip(written, known, whole, strict=True):
        if not parts or not all_known:
            pending.append(text)
            continue
        of_word = times[place : place + len(parts)]
        place += len(parts)
        words += _between(pending, words[-1].end_s if words else None, of_word[0][0])
        pending = []
        words.append(Word(text, of_word[0][0], of_word[-1][1]))
    if words:
        words += _between(pending, words[-1].end_s, None)
    return words


def _between(texts: list[str], start_s: float | None, end_s: float | None) -> list[Word]:
    """Words without a pronunciation, spread over the time that is left to them."""
    if not texts:
        return []
    if start_s is None:
        start_s = max(0.0, (end_s or 0.0) - 0.3 * len(texts))
    if end_s is None:
        end_s = start_s + 0.3 * len(texts)
    end_s = max(end_s, start_s + 0.02 * len(texts))
    edges = np.linspace(start_s, end_s, len(texts) + 1).tolist()
    return [Word(text, edges[i], edges[i + 1], 0.0) for i, text in enumerate(texts)]


def _of_cues(
    waveform: np.ndarray, speech: Sequence[Stretch], given: GivenText, config: PrepareConfig
) -> Heard:
    words: list[Word] = []
    scores = []
    for start_s, end_s, text in given.cues:
        offset = max(0.0, start_s - ROOM_S)
        found, score = aligned(
            waveform[round(offset * SPEECH_RATE_HZ) : round((end_s + ROOM_S) * SPEECH_RATE_HZ)], text
        )
        scores.append(score)
        fits, unknown = score >= config.min_alignment, math.isnan(score)
        words += [
            Word(word.text, word.start_s + offset, word.end_s + offset, word.confidence)
            for word in found
            if fits
        ] or [Word(text, start_s, end_s, fits=unknown)]  # one block; of another language it is not judged
    return Heard(tuple(words), tuple(speech), "subtitles", alignment=float(np.median(scores)))


def _whole(waveform: np.ndarray, speech: Sequence[Stretch], text: str, score: float) -> Heard:
    """A text that cannot be aligned: one block from the first to the last speech."""
    end_s = len(waveform) / SPEECH_RATE_HZ
    start_s, end_s = (speech[0][0], speech[-1][1]) if speech else (0.0, end_s)
    by = UNALIGNED if math.isnan(score) else MISALIGNED
    return Heard((Word(text, start_s, end_s),), tuple(speech), by, alignment=score)


def loud_speech(waveform: np.ndarray, speech: Sequence[Stretch]) -> list[Stretch]:
    """Parts of speech within 30 dB of its loudest: nothing is cut there, whatever words were heard."""
    step = round(FRAME_S * SPEECH_RATE_HZ)
    frames = waveform[: len(waveform) // step * step].reshape(-1, step)
    level = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    inside = np.zeros(len(level), bool)
    for start_s, end_s in speech:
        inside[round(start_s / FRAME_S) : round(end_s / FRAME_S)] = True
    if not inside.any():
        return []
    limit = np.percentile(level[inside], 95) * 10 ** (-LOUD_DB / 20)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (inside & (level > limit)).astype(np.int8), [0]])))
    return [(float(a) * FRAME_S, float(b) * FRAME_S) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _end(segment: Any, offset: float) -> tuple[float, float]:
    """End and confidence of a recognised word; `prob` is a probability already."""
    return offset + (segment.end_frame + 1) * FRAME_S, float(min(1.0, max(0.0, segment.prob)))


def _decoded(decoder: Any, sound: np.ndarray) -> Any:
    """The decoder after a sound of at least one sample; whatever is raised, it is ready for the next one."""
    peak = float(np.abs(sound).max(initial=0.0))
    pcm = (sound / max(peak, 1e-6) * 0.6 * 32767).astype("<i2").tobytes()
    decoder.reinit_feat()  # its noise estimate would carry over from the sound before
    decoder.start_utt()
    try:
        decoder.process_raw(pcm, full_utt=True)
    finally:
        decoder.end_utt()
    return decoder


@cache
def _recogniser() -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(samprate=SPEECH_RATE_HZ, logfn="/dev/null")


@cache
def _aligner() -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(samprate=SPEECH_RATE_HZ, logfn="/dev/null", lm=None)
