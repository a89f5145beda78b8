"""Sections of the page with generated clips alone: dialogues and camera moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiments.report.cards import Details, card_of
from experiments.report.page import Section
from experiments.scoring.clips import INDEX
from experiments.scoring.samples import SourceClip, generated_samples
from experiments.scoring.sets import CAMERA_SET, DIALOGUE_SET, EXCHANGED_SET, PROMPT_SETS

NUM_EXAMPLES = 4


def dialogues(generated: Path, details: Details) -> Section:
    """Each prompt as asked and, where that set was made too, with the references exchanged.

    Empty where no dialogue was made. Raises ValueError for a clip that was not scored.
    """
    exchanged = {sample.data_id: sample for sample in _examples(generated, EXCHANGED_SET)}
    rows = []
    for sample in _examples(generated, DIALOGUE_SET):
        cards = [card_of(DIALOGUE_SET, sample, details)]
        if twin := exchanged.get(sample.data_id):
            cards.append(replace(card_of(EXCHANGED_SET, twin, details), source="exchanged"))
        rows.append((sample.clip.prompt, cards))
    about = (
        "Two faces, two voices, in turns. The second clip of a row has the same prompt and noise, and each "
        "turn the other's reference: the voices are to change places."
    )
    return Section("Dialogue", about, rows)


def camera_moves(generated: Path, details: Details) -> Section:
    """The first clips; empty where the set was not made. Raises ValueError for a clip that was not scored."""
    samples = _examples(generated, CAMERA_SET)
    cards = [(sample.clip.prompt, [card_of(CAMERA_SET, sample, details)]) for sample in samples]
    return Section("Camera", "The camera pans or zooms as the prompt says.", cards)


def _examples(generated: Path, prompt_set: str) -> list[SourceClip]:
    """The first clips of a set; none of one that was not made."""
    kind = PROMPT_SETS[prompt_set]
    made = (generated / prompt_set / INDEX).is_file()
    return generated_samples(generated / prompt_set, kind, limit=NUM_EXAMPLES) if made else []
