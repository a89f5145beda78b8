"""Speech to words by PocketSphinx over a small vocabulary, in one process or several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Literal

import numpy as np

from rewards.speech.scoring import normalize
from rewards.speech.scripts import named
from rewards.speech.settings import REWARD, RecognizerSettings
from rewards.speech.sphinx import Sound, Sphinx, Spot, front_end

Question = Literal["listen", "spot"]


class Recognizer:
    """Speech to words of a vocabulary, any number of them in any order (JSGF grammar `<word>+`).

    `num_processes` > 1 keeps that many processes (PocketSphinx holds the interpreter lock, so threads do not
    help); use as a context manager or call `close`. Raises ValueError for words the pronunciation dictionary
    does not have.
    """

    def __init__(
        self, vocabulary: Sequence[str], num_processes: int = 1, settings: RecognizerSettings = REWARD
    ) -> None:
        self.vocabulary = tuple(dict.fromkeys(normalize(word) for word in vocabulary))
        self.settings = settings
        self.name = settings.name
        self._sphinx = Sphinx(self.vocabulary, settings)
        self._pool: ProcessPoolExecutor | None = None
        if num_processes > 1:
            spawn = multiprocessing.get_context("spawn")  # forking a process that runs torch threads can hang
            self._pool = ProcessPoolExecutor(
                num_processes, spawn, initializer=_start_worker, initargs=(self.vocabulary, settings)
            )
        self._num_processes = num_processes

    @property
    def num_phones(self) -> dict[str, int]:
        """Phones of each word of the vocabulary."""
        return self._sphinx.num_phones

    def refusal(self, text: str) -> str:
        """Why the words of a text cannot be heard: not English, or not in the vocabulary; "" if they can."""
        if foreign := named(text, but=("Latin",)):
            return f"PocketSphinx hears English only, the text has {foreign}; use wer_whisper or wer_endpoint"
        unknown = sorted(set(normalize(text).split()) - self.num_phones.keys())
        return f"{', '.join(unknown[:3])}: not in the recogniser's vocabulary" if unknown else ""

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Words recognised in each [N] 16 kHz sound, separated by blanks; "" if nothing is recognised."""
        return self._ask("listen", waveforms)

    def spot(self, waveforms: Sequence[np.ndarray]) -> list[list[Spot]]:
        """For each [N] 16 kHz sound the places where each word of the vocabulary fits, and how well."""
        return self._ask("spot", waveforms)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Question, waveforms: Sequence[np.ndarray]) -> list:
        sounds = [front_end(waveform, self.settings) for waveform in waveforms]
        if self._pool is None or len(sounds) < 4 * self._num_processes:
            return [_answer(self._sphinx, question, sound) for sound in sounds]
        chunk = max(1, min(16, len(sounds) // (2 * self._num_processes)))
        return list(self._pool.map(_answer_in_worker, [question] * len(sounds), sounds, chunksize=chunk))


def _answer(sphinx: Sphinx, question: Question, sound: Sound) -> str | list[Spot]:
    return sphinx.listen(sound) if question == "listen" else sphinx.spot(sound)


_worker: Sphinx


def _start_worker(vocabulary: tuple[str, ...], settings: RecognizerSettings) -> None:
    global _worker
    _worker = Sphinx(vocabulary, settings)


def _answer_in_worker(question: Question, sound: Sound) -> str | list[Spot]:
    return _answer(_worker, question, sound)
