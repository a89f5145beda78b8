"""PocketSphinx decoders, their input samples and their results. The English model is in the wheel."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rewards.sound import SAMPLE_RATE_HZ, loud_part
from rewards.speech.settings import RecognizerSettings

FRAME_S = 0.01
# PocketSphinx stores scores shifted right by ten bits, so its logarithms are too small by this factor
NATS_PER_LOG = 1024.0
SPOT_BEAM = 1e-200  # wide, so that words that were not spoken get a score too


class Sound(NamedTuple):
    """Decoder input: 16-bit samples and their start within the original sound."""

    pcm: bytes
    start_s: float


@dataclass(frozen=True)
class Spot:
    """One place where a word fits best. `evidence`: log-likelihood of the word's phones minus that of any
    phones, nats, <= 0."""

    word: str
    start_s: float
    end_s: float
    evidence: float

    @property
    def centre_s(self) -> float:
        return (self.start_s + self.end_s) / 2


def front_end(waveform: np.ndarray, settings: RecognizerSettings) -> Sound:
    """The peak-normalised loud part of float32 [N] 16 kHz sound between silence."""
    start, end = loud_part(waveform, settings.trim_db, settings.trim_margin_s)
    speech = waveform[start:end]
    speech = np.pad(speech / np.abs(speech).max() * settings.peak, round(settings.silence_s * SAMPLE_RATE_HZ))
    if settings.noise_dbfs is not None:
        noise = np.random.default_rng(0).standard_normal(len(speech))
        speech = np.clip(speech + noise * 10 ** (settings.noise_dbfs / 20), -1.0, 1.0)
    return Sound((speech * 32767).astype("<i2").tobytes(), start / SAMPLE_RATE_HZ - settings.silence_s)


class Sphinx:
    """The decoders of one process over one vocabulary. Raises ValueError for words the pronunciation
    dictionary does not have.

    `listen` follows the grammar `<word>+`; `spot` gives for each word of the vocabulary the places where it
    fits.
    """

    def __init__(self, vocabulary: Sequence[str], settings: RecognizerSettings) -> None:
        import pocketsphinx

        self.vocabulary = tuple(vocabulary)
        self._grammar = pocketsphinx.Decoder(lm=None, logfn="/dev/null", wip=settings.word_insertion_penalty)
        pronunciations: Mapping[str, str | None] = {
            word: self._grammar.lookup_word(word) for word in vocabulary
        }
        unknown = [word for word, phones in pronunciations.items() if phones is None]
        if unknown or not vocabulary:
            raise ValueError(
                f"vocabulary: {unknown or 'no words'}; every word must be in PocketSphinx' English dictionary"
            )
        self.num_phones = {word: len((phones or "").split()) for word, phones in pronunciations.items()}
        self._grammar.add_jsgf_string(
            "words", f"#JSGF V1.0; grammar words; public <speech> = ({' | '.join(vocabulary)})+;"
        )
        self._grammar.activate_search("words")
        self._spotter: Any = None

    def listen(self, sound: Sound) -> str:
        """The recognised words, separated by blanks."""
        hypothesis = _decode(self._grammar, sound).hyp()
        return re.sub(r"\(\d+\)", "", hypothesis.hypstr) if hypothesis else ""

    def spot(self, sound: Sound) -> list[Spot]:
        """Places where words of the vocabulary fit, in no order; places of one word do not overlap."""
        decoder = _decode(self._spotter or self._make_spotter(), sound)
        if decoder.hyp() is None:
            return []
        log = decoder.logmath
        nats = float(np.log(log.exp(-1)) / -1) * NATS_PER_LOG
        return [
            Spot(
                segment.word.strip(),
                sound.start_s + segment.start_frame * FRAME_S,
                sound.start_s + (segment.end_frame + 1) * FRAME_S,
                min(0.0, log.log(segment.prob) * nats),
            )
            for segment in decoder.seg()
        ]

    def _make_spotter(self) -> Any:
        import pocketsphinx

        # all senones are computed, so that scores of different words are relative to the same best one
        self._spotter = pocketsphinx.Decoder(lm=None, logfn="/dev/null", compallsen=True, beam=SPOT_BEAM)
        with tempfile.NamedTemporaryFile("w", suffix=".kws") as file:
            file.write("".join(f"{word} /1e-300/\n" for word in self.vocabulary))
            file.flush()
            self._spotter.add_kws("words", file.name)
        self._spotter.activate_search("words")
        return self._spotter


def _decode(decoder: Any, sound: Sound) -> Any:
    # reset: its noise estimate would carry over from the previous sound and make scores depend on order
    decoder.reinit_feat()
    decoder.start_utt()
    try:
        decoder.process_raw(sound.pcm, full_utt=True)
    finally:  # whatever is raised, it is ready for the next sound
        decoder.end_utt()
    return decoder
