"""The fifth voice's recordings and the face that it belongs to."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import soundfile

from pretrain.data.corpus import cast
from pretrain.data.corpus.bank import Utterance, load_bank

BANK_FOLDER = Path(__file__).parent / "bank"
SOUND, INDEX = "fifth.flac", "index.json"
VOICE, FACE = "fifth", "nina"
_NINA = cast.Character(
    FACE, "woman with violet hair and a black shirt", VOICE, (120, 60, 190), (236, 190, 160), (30, 30, 36),
    (15.0, 20.5), True,
)  # fmt: skip


@cache
def add_voice() -> None:
    """Put the voice into this process's bank, the face into its cast. Raises OSError for a missing file."""
    sound = soundfile.read(BANK_FOLDER / SOUND, dtype="float32")[0]
    utterances = load_bank().utterances
    for entry in json.loads((BANK_FOLDER / INDEX).read_text()):
        key, waveform = (entry["word"], VOICE), sound[entry["start"] : entry["end"]]
        utterances[key] = (*utterances.get(key, ()), Utterance(*key, entry["stretch"], waveform))
    cast.CHARACTER_BY_NAME[FACE] = _NINA
