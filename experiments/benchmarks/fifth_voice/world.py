"""Writes the example's clips and its prompts: 40 raw clips with texts, and words that none of them says."""

from __future__ import annotations

import itertools
from pathlib import Path

from experiments.benchmarks.fifth_voice.voice import FACE, VOICE, add_voice
from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.plan import SHORT_FRAMES, ClipPlan, Turn
from pretrain.data.corpus.record import prompt_row, record, write_reference
from pretrain.data.corpus.texts import PRETRAIN, one_speaker_texts
from pretrain.jsonl import dump

CLIPS, PROMPTS = 40, 96
CLIPS_FOLDER, PROMPTS_FOLDER, REFERENCES_FOLDER = "clips", "prompts", "references"
JUDGING, CHOOSING = "judging", "choosing"  # prompts that measure; those by which settings were chosen
UNSAID = {JUDGING: 5, CHOOSING: 3}  # words of each that no clip says
TAKES = 4  # recordings of each word
_ROOM_SNR_DB = 45.0  # of the clips' noise; PocketSphinx hears less of a voice in digital silence
_REFERENCES, _WORDS_PER_REFERENCE = 4, 3


def write_world(folder: Path) -> None:
    """FOLDER/clips (mp4 beside txt), references and prompts/judging.jsonl, choosing.jsonl. Raises OSError."""
    add_voice()
    for name in (CLIPS_FOLDER, REFERENCES_FOLDER, PROMPTS_FOLDER):
        (folder / name).mkdir(parents=True, exist_ok=True)
    said, unsaid = words()
    for number in range(_REFERENCES):
        chosen = tuple(
            (said[(_WORDS_PER_REFERENCE * number + place) % len(said)], place)
            for place in range(_WORDS_PER_REFERENCE)
        )
        write_reference(folder / REFERENCES_FOLDER / f"{VOICE}_{number}.wav", VOICE, chosen)
    for number in range(CLIPS):
        plan = _plan(f"nina-{number:02d}", number, said)
        record(plan, folder, number)
        (folder / CLIPS_FOLDER / f"{plan.data_id}.txt").write_text(f"{plan.text}\n")
    for name, chosen in unsaid.items():
        plans = [_plan(f"{name}-{number:03d}", number, chosen) for number in range(PROMPTS)]
        dump(folder / PROMPTS_FOLDER / f"{name}.jsonl", [prompt_row(plan) for plan in plans])


def words() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Those that the clips say, and by set of prompts those that they do not."""
    rest = list(load_bank().words)
    unsaid = {name: tuple(rest.pop() for _ in range(count)) for name, count in UNSAID.items()}
    return tuple(rest), unsaid


def _plan(data_id: str, number: int, chosen: tuple[str, ...]) -> ClipPlan:
    """The words in turn, each with other takes, texts, times and references."""
    word, turn_of_word = chosen[number % len(chosen)], number // len(chosen)
    reference = f"{VOICE}_{number % _REFERENCES}"
    turn = Turn(word, VOICE, FACE, turn_of_word % TAKES, 0.1 + 0.05 * (number % 3), reference)
    texts = itertools.cycle(one_speaker_texts(turn, "", PRETRAIN))
    text, wall = next(itertools.islice(texts, 5 * number, None))
    return ClipPlan(data_id, "fifth", "speech", text, SHORT_FRAMES, (turn,), None, wall, snr_db=_ROOM_SNR_DB)
