"""Validation is repeatable, covers every level and every size of clips, and leaves out what is absent."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import clean_batch, debug_model
from titan_world import config, stage_run

from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.sample import Sample
from pretrain.objective import ObjectiveConfig
from pretrain.randomness import stable_hash
from pretrain.titan.validate import (
    SIGMA_BUCKETS,
    Validator,
    drawn_clips,
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


SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=18)


@given(SIZES, st.integers(0, 400))
def test_every_size_of_clips_is_drawn_in_its_proportion_at_equal_distances(sizes, number):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    buckets = {
        f"{place:02d}": range(start, start + size)
        for place, (start, size) in enumerate(zip(starts, sizes, strict=True))
    }
    drawn = drawn_clips(buckets, number)
    total = sum(sizes)
    assert sum(map(len, drawn.values())) == min(number, total)
    for key, members in buckets.items():
        own = drawn.get(key, [])
        assert sorted(set(own)) == own and set(own) <= set(members)
        if number >= total:
            assert own == list(members)
        if number >= len(sizes):
            assert own
        distances = [after - before for before, after in pairwise(own)]
        assert not distances or max(distances) - min(distances) <= 1
        # one clip more in one bucket and one less in another would not be nearer to the proportions
        for other, others in drawn.items():
            if other != key and len(others) > 1:
                assert (
                    len(members) / (2 * len(own) + 1) <= len(buckets[other]) / (2 * len(others) - 1)
                    or not own
                )


def _validation_set(folder, clips):
    """`clips`: of each number of latent frames how many; 0 frames = sound alone."""
    generator = torch.Generator().manual_seed(0)
    with LatentWriter(folder / "validation", codec_id="test-codec") as writer:
        for frames, number in clips.items():
            for index in range(number):
                writer.add(
                    Sample(
                        f"{frames}-{index}",
                        torch.randn(48, frames, 2, 2, generator=generator) if frames else None,
                        torch.randn(128, 3 * max(frames, 1), generator=generator),
                        6.0,
                        torch.randn(4, 256, generator=generator),
                        torch.arange(1),
                        torch.randn(1, 192, generator=generator),
                    )
                )
    return folder


def _counted(run, task, world_size=1):
    """(latent frames, hash of the name) of every clip that counts, once per sigma and rank that counts it."""
    found = Counter()
    for rank in range(world_size):
        for batch, counts in Validator(run, rank, world_size, torch.device("cpu"))._batches(task):
            frames = batch.video.latents.shape[2] if batch.video else 0
            found.update((frames, name) for name in batch.sample_ids.tolist() if counts)
    return found


def test_all_lengths_of_a_set_are_validated_on_any_number_of_ranks(tmp_path):
    clips = dict.fromkeys(range(2, 8), 12)
    latents = _validation_set(tmp_path / "latents", clips)
    run = stage_run(tmp_path / "out", latents, config(validation_samples=20))
    alone = _counted(run, Task.T2AV)
    assert sorted(Counter(frames for frames, _ in alone).values()) == [3, 3, 3, 3, 4, 4]
    assert set(alone.values()) == {len(SIGMA_BUCKETS)}
    for world_size in (3, 16):
        assert _counted(run, Task.T2AV, world_size) == alone


def test_one_length_that_is_asked_for_whole_is_validated_as_before(tmp_path):
    latents = _validation_set(tmp_path / "latents", {2: 20})
    run = stage_run(tmp_path / "out", latents, config(validation_samples=20))
    batches = list(Validator(run, 0, 1, torch.device("cpu"))._batches(Task.T2AV))[:: len(SIGMA_BUCKETS)]
    assert [len(batch.sample_ids) for batch, _ in batches] == [8, 8, 4]
    names = [name for batch, _ in batches for name in batch.sample_ids.tolist()]
    assert names == [stable_hash(f"2-{index}") for index in range(20)]


def test_clips_of_sound_alone_are_validated_where_no_picture_is_generated(tmp_path):
    latents = _validation_set(tmp_path / "latents", {2: 10, 0: 10})
    run = stage_run(tmp_path / "out", latents, config(validation_samples=8))
    assert {frames for frames, _ in _counted(run, Task.T2AV)} == {2}
    assert len(_counted(run, Task.T2AV)) == len(_counted(run, Task.T2A)) == 8
    sounds = {stable_hash(f"0-{index}") for index in range(10)}
    assert len(sounds & {name for _, name in _counted(run, Task.T2A)}) == 4
