"""A voice and a face that the mini never met: `python -m experiments.benchmarks.fifth_voice FOLDER`.

Writes rows.jsonl of 40 short clips and prompts.jsonl of 48 prompts with words that none of the clips says.
The voice is one of the bank's, played 1.25 times as fast: pitch and formants are a quarter higher.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from pretrain.data.corpus import cast
from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.plan import SHORT_FRAMES, ClipPlan, Turn
from pretrain.data.corpus.record import prompt_row, record, write_reference
from pretrain.data.corpus.texts import PRETRAIN, one_speaker_texts
from pretrain.jsonl import dump

VOICE, SOURCE, FACE = "fifth", "rms", "nina"
CLIPS, PROMPTS, UNSAID = 40, 48, 6  # UNSAID words are in no clip
UP, DOWN = 4, 5
_NINA = cast.Character(
    FACE, "woman with violet hair and a black shirt", VOICE, (120, 60, 190), (236, 190, 160), (30, 30, 36),
    (15.0, 20.5), True,
)  # fmt: skip


def add_voice() -> None:
    """Put the voice into this process's bank and the face into its cast."""
    utterances = load_bank().utterances
    for (word, voice), takes in list(utterances.items()):
        if voice == SOURCE:
            utterances[word, VOICE] = tuple(
                dataclasses.replace(
                    take, voice=VOICE, waveform=resample_poly(take.waveform, UP, DOWN).astype(np.float32)
                )
                for take in takes
            )
    cast.CHARACTER_BY_NAME[FACE] = _NINA


def write_set(folder: Path) -> None:
    """FOLDER/clips, references, rows.jsonl, prompts/prompts.jsonl, and real/ of the voice itself."""
    add_voice()
    for name in ("clips", "references", "prompts", "real"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    words = load_bank().words
    said, unsaid = words[:-UNSAID], words[-UNSAID:]
    for number in range(4):
        chosen = tuple((said[(3 * number + i) % len(said)], i) for i in range(3))
        write_reference(folder / "references" / f"{VOICE}_{number}.wav", VOICE, chosen)
    dump(folder / "rows.jsonl", [record(_plan(n, said), folder, n) for n in range(CLIPS)])
    dump(folder / "prompts" / "prompts.jsonl", [prompt_row(_plan(n, unsaid)) for n in range(PROMPTS)])
    for word in words:
        for take in range(3):
            write_reference(folder / "real" / f"{word}_{take}.wav", VOICE, ((word, take),))


def _plan(number: int, words: tuple[str, ...]) -> ClipPlan:
    word, take = words[number % len(words)], number // len(words) % 3
    turn = Turn(word, VOICE, FACE, take, 0.1 + 0.05 * (number % 3), f"{VOICE}_{number % 4}")
    texts = list(one_speaker_texts(turn, "", PRETRAIN))
    text, wall = texts[number % len(texts)]
    return ClipPlan(f"fifth-{word}-{number:03d}", "fifth", "speech", text, SHORT_FRAMES, (turn,), None, wall)


if __name__ == "__main__":
    write_set(Path(sys.argv[1]))
    print(f"{CLIPS} clips of {SAMPLE_RATE_HZ} Hz and {PROMPTS} prompts in {sys.argv[1]}")
