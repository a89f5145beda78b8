"""Speech to words by PocketSphinx (its English model is in the wheel) over a small vocabulary."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from rewards.sound import SAMPLE_RATE_HZ, trim
from rewards.speech.scoring import normalize

# Chosen on one-second clips of single flite words, clean and after a 64-mel Griffin-Lim round trip: with the library's
# own word insertion penalty a grammar of `<word>+` hears a second, short word in a fifth of them.
WORD_INSERTION_PENALTY = 1e-3
TRIM_DB = 40.0
TRIM_MARGIN_S = 0.05
SILENCE_S = 0.2  # digital silence around the speech: the recogniser's cepstral mean needs a silent start and end


class Recognizer:
    """Speech to words of a vocabulary, any number of them in any order (JSGF grammar `<word>+`).

    `num_processes` > 1 keeps that many processes (PocketSphinx holds the interpreter lock, so threads do not help); use as
    a context manager or call `close`. Raises ValueError for words the pronunciation dictionary does not have.
    """

    name = "pocketsphinx"

    def __init__(self, vocabulary: Sequence[str], num_processes: int = 1) -> None:
        self.vocabulary = tuple(dict.fromkeys(normalize(word) for word in vocabulary))
        self._decoder = _make_decoder(self.vocabulary)
        self._pool: ProcessPoolExecutor | None = None
        if num_processes > 1:
            spawn = multiprocessing.get_context("spawn")  # forking a process that runs torch threads can hang
            self._pool = ProcessPoolExecutor(num_processes, spawn, initializer=_start_worker, initargs=(self.vocabulary,))
        self._num_processes = num_processes

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Words heard in each [N] 16 kHz sound, separated by blanks; "" when nothing is recognised."""
        sounds = [_pcm(waveform) for waveform in waveforms]
        if self._pool is None or len(sounds) < 4 * self._num_processes:
            return [_hear(self._decoder, sound) for sound in sounds]
        chunk = max(1, min(16, len(sounds) // (2 * self._num_processes)))
        return list(self._pool.map(_hear_in_worker, sounds, chunksize=chunk))

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pcm(waveform: np.ndarray) -> bytes:
    """16-bit samples of the peak-normalised speech between digital silence."""
    speech = trim(waveform, TRIM_DB, TRIM_MARGIN_S)
    speech = np.pad(speech / np.abs(speech).max() * 0.95, round(SILENCE_S * SAMPLE_RATE_HZ))
    return (speech * 32767).astype("<i2").tobytes()


def _make_decoder(vocabulary: Sequence[str]) -> Any:
    import pocketsphinx

    decoder = pocketsphinx.Decoder(lm=None, logfn="/dev/null", wip=WORD_INSERTION_PENALTY)
    unknown = [word for word in vocabulary if decoder.lookup_word(word) is None]
    if unknown or not vocabulary:
        raise ValueError(f"vocabulary: {unknown or 'no words'}; every word must be in PocketSphinx' English dictionary")
    decoder.add_jsgf_string("words", f"#JSGF V1.0; grammar words; public <speech> = ({' | '.join(vocabulary)})+;")
    decoder.activate_search("words")
    return decoder


def _hear(decoder: Any, sound: bytes) -> str:
    decoder.start_utt()
    decoder.process_raw(sound, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return re.sub(r"\(\d+\)", "", hypothesis.hypstr) if hypothesis else ""


_worker_decoder: Any = None


def _start_worker(vocabulary: tuple[str, ...]) -> None:
    global _worker_decoder
    _worker_decoder = _make_decoder(vocabulary)


def _hear_in_worker(sound: bytes) -> str:
    return _hear(_worker_decoder, sound)
