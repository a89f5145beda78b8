"""Prompts to clips that are to be made: tasks, seeds, names, batches, and warnings beyond the training."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.clip_kind import ClipKind, check_sound, kind_of
from pretrain.generate import checked_jobs
from pretrain.generation.beyond import beyond
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import batches_of, clip_jobs, left_out
from pretrain.prompt import PromptRow, check_plain, parse, read_prompts

CONFIG = GenerateConfig()
SPOKEN = "A man says: <S>zero<E>."


def rows_of(folder: Path, *rows: dict) -> list[PromptRow]:
    path = folder / "p.jsonl"
    whole = [{"data_id": f"r{number}", "prompt": SPOKEN, **row} for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole))
    return read_prompts(path)


def test_a_task_decides_what_is_made_and_what_it_starts_from(tmp_path):
    rows = rows_of(
        tmp_path,
        {"task": "T2A", "num_frames": 49, "height": 32, "width": 32},
        {"task": "T2V"},
        {"task": "TI2AV", "image_path": "a.png"},
        {"task": "TIA2AV", "image_path": "a.png", "spk_wavs": ["v.wav"]},
        {"image_path": "a.png", "spk_wavs": ["v.wav"]},
    )
    kinds = [kind_of(job.row, CONFIG) for job in clip_jobs(rows, CONFIG)]
    assert kinds[0] == ClipKind(49, 0, 0, False, video=False)
    assert kinds[1] == ClipKind(25, 64, 64, False, audio=False)
    assert kinds[2] == kinds[3] == kinds[4] == ClipKind(25, 64, 64, True)


def test_a_task_of_all_rows_leaves_out_what_it_does_not_take_and_says_so(tmp_path):
    rows = rows_of(tmp_path, {"image_path": "a.png", "spk_wavs": ["v.wav"]}, {"task": "T2V"})
    config = dataclasses.replace(CONFIG, task="T2A")
    first, second = clip_jobs(rows, config)
    assert first.row.image_path is None and first.row.reference_paths == (tmp_path / "v.wav",)
    assert second.row.task == "T2V"
    assert left_out(rows, config) == ["task T2A takes no image_path: left out of 1 rows"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task": "TI2AV"}, "p.jsonl:1 image_path: task TI2AV starts from one"),
        ({"task": "TIA2AV", "image_path": "a.png"}, "p.jsonl:1 spk_wavs: task TIA2AV speaks in given voices"),
        ({"task": "T2A", "image_path": "a.png"}, "p.jsonl:1 task: T2A takes no image_path"),
        ({"task": "TI2AV", "image_path": "a.png", "spk_wavs": ["v.wav"]}, "TI2AV takes no spk_wavs"),
    ],
)
def test_a_row_that_contradicts_its_task_is_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        clip_jobs(rows_of(tmp_path, row), CONFIG)


def test_seeds_make_a_clip_each_and_a_seed_of_a_row_is_its_own(tmp_path):
    several = dataclasses.replace(CONFIG, seeds=(3, 5))
    jobs = clip_jobs(rows_of(tmp_path, {}, {}), several)
    assert [(job.name, job.seed, job.row.data_id) for job in jobs] == [
        ("r0-s3", 3, "r0"),
        ("r0-s5", 5, "r0"),
        ("r1-s3", 3, "r1"),
        ("r1-s5", 5, "r1"),
    ]
    assert [job.seed for job in clip_jobs(rows_of(tmp_path, {}, {"seed": 9}), CONFIG)] == [0, 9]
    with pytest.raises(ValueError, match="seed: stands beside several seeds"):
        clip_jobs(rows_of(tmp_path, {"seed": 9}), several)
    clash = dataclasses.replace(CONFIG, seeds=(3, 5))
    rows = [dataclasses.replace(row, data_id="r0") for row in rows_of(tmp_path, {}, {})]
    with pytest.raises(ValueError, match=r"p\.jsonl:2 data_id: 'r0-s3' stands twice"):
        clip_jobs(rows, clash)


@given(lengths=st.lists(st.sampled_from([5, 9, 13]), min_size=1, max_size=30), size=st.integers(1, 7))
def test_batches_have_one_kind_and_every_job_once(lengths, size):
    rows = [PromptRow(parse("x"), None, (), frames, f"r{n}") for n, frames in enumerate(lengths)]
    config = dataclasses.replace(CONFIG, batch_size=size)
    batches = batches_of(clip_jobs(rows, config), config)
    assert sorted(job.name for batch in batches for job in batch) == sorted(row.data_id for row in rows)
    assert all(
        len({kind_of(job.row, config) for job in batch}) == 1 and len(batch) <= size for batch in batches
    )
    numbers = [[int(job.name[1:]) for job in batch] for batch in batches]
    assert all(batch == sorted(batch) for batch in numbers)


def test_what_other_commands_do_not_take_is_refused_by_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"p\.jsonl:2 task: alignment does not take it from a row"):
        check_plain(rows_of(tmp_path, {}, {"task": "T2A"}), "alignment")


def test_clips_beyond_the_training_are_warned_of(tmp_path):
    facts = {
        "trained_on": {
            "num_frames": [25, 25],
            "fps": [24.0],
            "sizes": ["64x64"],
            "sound_s": [0.5, 1.04],
            "spans": 2,
        }
    }
    spans = " ".join("<S>one<E>" for _ in range(3))
    rows = rows_of(
        tmp_path,
        {},
        {"num_frames": 97},
        {"width": 96},
        {"prompt": spans},
        {"task": "T2A", "num_frames": 97},
        {"task": "T2A", "num_frames": 5},
    )
    found = beyond(clip_jobs(rows, CONFIG), CONFIG, facts)
    assert [(one["line"], one["field"]) for one in found] == [
        (2, "num_frames"),
        (3, "width"),
        (4, "prompt"),
        (5, "num_frames"),
    ]
    assert found[0]["message"] == "97 frames (4.04 s), the model was trained on 25; expect worse"
    assert beyond(clip_jobs(rows, CONFIG), CONFIG, {}) == []


def test_a_clip_too_short_for_a_token_of_sound_is_refused_with_its_row(tmp_path):
    """At 60 frames a second one frame is 0.42 tokens of sound, and 5 are 2.1."""
    fast = dataclasses.replace(CONFIG, fps=60.0)
    rows = rows_of(tmp_path, {"num_frames": 5}, {"num_frames": 1, "task": "T2V"}, {"num_frames": 1})
    check_sound([job.row for job in clip_jobs(rows[:2], fast)], fast, fast.fps)
    with pytest.raises(ValueError, match=r"p\.jsonl:3: num_frames 1 at 60 a second last 0\.0167 s"):
        checked_jobs(rows, fast)
    check_sound(rows, CONFIG, CONFIG.fps)
