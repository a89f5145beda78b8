"""The speech bank: single words by four synthesised voices, FLAC in the repo (bank/DATA_CARD.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

BANK_FOLDER = Path(__file__).parent / "bank"
SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class Utterance:
    """One spoken word; `stretch` is flite's duration factor."""

    word: str
    voice: str
    stretch: float
    waveform: np.ndarray  # [N] float32, 16 kHz mono, one loudness for the whole bank


@dataclass(frozen=True)
class SpeechBank:
    """Every word by every voice at every stretch."""

    words: tuple[str, ...]
    voices: tuple[str, ...]
    utterances: dict[tuple[str, str], tuple[Utterance, ...]]  # by (word, voice)


@cache
def load_bank() -> SpeechBank:
    """The repo's bank, read once per process. Raises FileNotFoundError for a missing file."""
    index = _index()
    voices = tuple(dict.fromkeys(entry["voice"] for entry in index))
    sounds = {voice: _read(BANK_FOLDER / f"{voice}.flac") for voice in voices}
    utterances: dict[tuple[str, str], tuple[Utterance, ...]] = {}
    for entry in index:
        waveform = sounds[entry["voice"]][entry["start"] : entry["end"]]
        key = (entry["word"], entry["voice"])
        utterances[key] = (*utterances.get(key, ()), Utterance(*key, entry["stretch"], waveform))
    return SpeechBank(vocabulary(), voices, utterances)


def vocabulary() -> tuple[str, ...]:
    """The words that the corpus can say, for a recogniser's grammar; no sound is read."""
    return tuple(dict.fromkeys(entry["word"] for entry in _index()))


def _index() -> list[dict[str, Any]]:
    return json.loads((BANK_FOLDER / "index.json").read_text())


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the speech bank is incomplete; restore it with git checkout")
    return soundfile.read(path, dtype="float32")[0]
