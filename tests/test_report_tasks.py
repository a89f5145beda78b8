"""Clips of one modality on the demo's page, and what it says of tasks that were not trained."""

import json

import numpy as np
import pytest
import soundfile

from experiments.report.page import Section, page
from experiments.report.task_clips import task_sections, trained_words
from pretrain.media.write import write_mp4

TASKS = {"stage1": {"T2A": 3.0, "T2AV": 1.0}, "stage2": {"T2A": 1.0, "T2AV": 2.5, "T2V": 0.5}}


@pytest.fixture
def pretrain(tmp_path):
    for name, tasks in TASKS.items():
        folder = tmp_path / "pretrain" / name
        folder.mkdir(parents=True)
        resolved = {"stage": name, "config": {"stages": {name: {"steps": 200, "tasks": tasks}}}}
        (folder / "resolved.json").write_text(json.dumps(resolved))
    return {name: tmp_path / "pretrain" / name for name in TASKS}


def test_the_share_of_a_task_is_said_by_stage(pretrain):
    assert trained_words("T2A", pretrain) == (
        "Trained on T2A in 75 % of the 200 steps of stage1 and 25 % of the 200 steps of stage2."
    )
    assert trained_words("T2V", pretrain) == (
        "Trained on T2V in 12 % of the 200 steps of stage2, in no other stage."
    )
    assert "was not trained on T2V" in trained_words("T2V", {"stage1": pretrain["stage1"]})
    (pretrain["stage1"] / "resolved.json").unlink()
    assert "is not known (stage1 has no resolved.json)" in trained_words("T2V", pretrain)


@pytest.fixture
def generated(tmp_path):
    tone = np.sin(np.arange(16_640) / 5).astype(np.float32) * 0.3
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
    for name, media in (("pretrain_t2a", "a.wav"), ("pretrain_t2v", "a.mp4")):
        folder = tmp_path / "generated" / name
        folder.mkdir(parents=True)
        sound = media.endswith("wav")
        row = {
            "data_id": "a",
            "prompt": "A woman says <S>one<E>.",
            "video": "" if sound else media,
            "audio": media if sound else "",
            "reference_paths": [None],
            "meta": {"voices": ["slt"]},
        }
        (folder / "index.jsonl").write_text(json.dumps(row) + "\n")
        if sound:
            soundfile.write(folder / media, tone, 16_000)
        else:
            write_mp4(folder / media, frames, 24.0, None, 16_000)
    return tmp_path / "generated"


def test_a_clip_of_one_modality_is_shown_with_what_can_be_said_of_it(pretrain, generated):
    scored = {"scores": {}, "texts": {"wer_pocketsphinx": "one", "voice_accuracy_resemblyzer": "slt"}}
    sections = task_sections(generated, pretrain, {("pretrain_t2a", "generated", "a"): scored})
    assert [section.heading for section in sections] == ["Sound alone (T2A)", "Picture alone (T2V)"]
    html = page({}, [], [Section("First", "", []), *sections], None, {})
    assert html.count("<audio controls") == 1 and html.count("<video") == 1
    assert html.count("<dt>recognised") == 1 and "lips and loudness" not in html
    assert "in no other stage" in html and html.count("\u2713") == 2


def test_a_sound_that_was_not_scored_is_refused_and_a_missing_set_left_out(pretrain, generated):
    with pytest.raises(ValueError, match="pretrain_t2a is not in the evaluation; run `nava evaluate`"):
        task_sections(generated, pretrain, {})
    (generated / "pretrain_t2a" / "index.jsonl").unlink()
    assert [section.heading for section in task_sections(generated, pretrain, {})] == ["Picture alone (T2V)"]
