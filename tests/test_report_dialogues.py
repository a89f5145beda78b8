"""Dialogues on the demo's page: as asked, and beside it with the references exchanged."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.report.generated_clips import dialogues
from experiments.report.page import Section, page
from experiments.scoring.sets import DIALOGUE_SET, EXCHANGED_SET
from pretrain.media.write import write_mp4

VOICES = {DIALOGUE_SET: "slt rms", EXCHANGED_SET: "rms slt"}


def made(root: Path, name: str, count: int) -> dict:
    """A set of `count` clips in root, and what was heard of them."""
    folder = root / name
    folder.mkdir(parents=True)
    tone = np.sin(np.arange(16_640) / 5).astype(np.float32) * 0.3
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
    rows = []
    for number in range(count):
        write_mp4(folder / f"d-{number}.mp4", frames, 24.0, tone, 16_000)
        row = {
            "data_id": f"d-{number}",
            "prompt": f"<S>one<E> and <S>two<E>, {number}.",
            "reference_paths": [],
        }
        rows.append(
            {**row, "video": f"d-{number}.mp4", "audio": "", "meta": {"voices": VOICES[name].split()}}
        )
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = {"wer_pocketsphinx": "one two", "voice_accuracy_resemblyzer": VOICES[name]}
    return {(name, "generated", row["data_id"]): {"scores": {}, "texts": heard} for row in rows}


def test_a_clip_stands_beside_its_twin_with_the_references_exchanged(tmp_path):
    details = made(tmp_path, DIALOGUE_SET, 2) | made(tmp_path, EXCHANGED_SET, 1)
    section = dialogues(tmp_path, details)
    assert [[card.source for card in cards] for _, cards in section.rows] == [
        ["generated", "exchanged"],
        ["generated"],
    ]
    html = page({}, [], [Section("First", "", []), section], None, {})
    assert (
        html.count("references exchanged") == 2 and html.count("rms slt") == 1
    )  # name and picture; what was heard
    assert html.count("✓") == 6 and "✗" not in html  # words and voices of three clips


def test_without_dialogues_there_is_no_section_and_an_unscored_one_is_refused(tmp_path):
    assert dialogues(tmp_path, {}).rows == []
    made(tmp_path, DIALOGUE_SET, 1)
    with pytest.raises(ValueError, match="pretrain_dialogue is not in the evaluation; run `nava evaluate`"):
        dialogues(tmp_path, {})
