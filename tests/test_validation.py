"""Validation is repeatable, covers every level bucket and leaves out what is absent."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import clean_batch, debug_model

from pretrain.objective import ObjectiveConfig
from pretrain.titan.validate import (
    SIGMA_BUCKETS,
    losses_by_task,
    parts_of_rank,
    validation_losses,
    validation_sums,
)
from pretrain.types import Task


def test_validation_is_repeatable_and_covers_the_buckets() -> None:
    model, batches = debug_model(), [(clean_batch(seed=seed), True) for seed in range(5)]
    first, second = (validation_losses(validation_sums(model, batches, ObjectiveConfig())) for _ in range(2))
    assert first == second
    assert set(first) == {
        f"validation/{name}/{centre}" for name in ("video", "audio") for centre in SIGMA_BUCKETS
    }
    assert all(math.isfinite(value) and value > 0 for value in first.values())


@given(st.integers(0, 90), st.integers(1, 130))
def test_on_any_number_of_ranks_each_clip_counts_once_and_all_ranks_go_on_together(clips, world_size):
    parts = [list(parts_of_rank(range(clips), rank, world_size)) for rank in range(world_size)]
    assert len({len(of_rank) for of_rank in parts}) == 1
    assert all(rows for of_rank in parts for rows, _ in of_rank)
    assert sorted(row for of_rank in parts for rows, counts in of_rank if counts for row in rows) == [
        *range(clips)
    ]


def test_what_does_not_count_changes_no_loss() -> None:
    model, other = debug_model(), clean_batch(seed=9)
    batches = [(clean_batch(seed=seed), True) for seed in range(5)]
    padded = [*batches, *((other, False) for _ in SIGMA_BUCKETS)]
    assert validation_sums(model, padded, ObjectiveConfig()) == validation_sums(
        model, batches, ObjectiveConfig()
    )


def test_absent_modality_is_left_out() -> None:
    batches = [(clean_batch(Task.T2A), True)]
    losses = validation_losses(validation_sums(debug_model(), batches, ObjectiveConfig()))
    assert list(losses) == ["validation/audio/0.1"]


def test_each_task_has_its_own_means_and_t2av_the_common_names() -> None:
    sums = {
        f"{task}/{name}/{centre}/{part}": torch.tensor(value, dtype=torch.float64)
        for number, task in enumerate(Task, start=1)
        for name in ("video", "audio")
        for place, centre in enumerate(SIGMA_BUCKETS)
        for part, value in (("sum", number * (place + 1.0)), ("count", 2.0))
        if not (task is Task.T2A and name == "video") and not (task is Task.T2V and name == "audio")
    }
    losses = losses_by_task(sums)
    for number, task in enumerate(Task, start=1):
        for name, present in (("video", task is not Task.T2A), ("audio", task is not Task.T2V)):
            assert (f"validation/{task}/{name}" in losses) is present
            if present:
                assert losses[f"validation/{task}/{name}"] == pytest.approx(number * 3.0 / 2)
    assert losses["validation/video"] == losses["validation/T2AV/video"]
    assert losses["validation/audio/0.9"] == pytest.approx(5.0 / 2)
    assert len(losses) == 8 + 2 + 2 * len(SIGMA_BUCKETS)


def test_a_task_without_the_picture_answers_for_its_sound_alone() -> None:
    """The loss of T2A is that of the sound without any picture beside it, not a part of T2AV's."""
    model = debug_model()
    alone, joint = (
        losses_by_task(
            {
                f"{task}/{name}": value
                for name, value in validation_sums(
                    model, [(clean_batch(task), True)] * 5, ObjectiveConfig()
                ).items()
            }
        )
        for task in (Task.T2A, Task.T2AV)
    )
    assert set(alone) == {"validation/T2A/audio"}
    assert alone["validation/T2A/audio"] != pytest.approx(joint["validation/T2AV/audio"], rel=1e-4)
