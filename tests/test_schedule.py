from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig, task_of_step
from pretrain.types import Task


@given(
    st.integers(0, 2**31),
    st.dictionaries(st.sampled_from(sorted(Task)), st.floats(0.1, 10), min_size=1),
    st.integers(50, 600),
)
@settings(max_examples=40, deadline=None)
def test_shares_follow_the_weights(seed, tasks, steps):
    stage = StageConfig(tasks=tasks)
    counts = Counter(task_of_step(seed, stage, step).task for step in range(1, steps + 1))
    total = sum(tasks.values())
    for name, weight in tasks.items():
        assert abs(counts[Task(name)] - steps * weight / total) <= 8


def test_audio_only_draws_from_its_own_sets():
    stage = StageConfig(
        tasks={"T2A": 1, "T2AV": 1}, sets={"paired": 1, "curated": 3}, audio_sets={"audio_only": 1}
    )
    draws = [task_of_step(3, stage, step) for step in range(400)]
    assert {draw.set_name for draw in draws if draw.task is Task.T2A} == {"audio_only"}
    joint = Counter(draw.set_name for draw in draws if draw.task is Task.T2AV)
    assert 0.6 < joint["curated"] / sum(joint.values()) < 0.9


def test_weight_zero_is_never_drawn():
    stage = StageConfig(tasks={"T2A": 0, "TI2AV": 1}, sets={"paired": 1, "other": 0}, audio_sets={})
    assert {task_of_step(0, stage, step) for step in range(200)} == {(Task.TI2AV, "paired")}


def test_stages_differ_and_seeds_differ():
    def sequence(seed, name):
        return [task_of_step(seed, StageConfig(name=name), step) for step in range(40)]

    assert sequence(0, "stage1") == sequence(0, "stage1")
    assert sequence(0, "stage1") != sequence(0, "stage2")
    assert sequence(0, "stage1") != sequence(1, "stage1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": {"T2AW": 1}}, "T2AV"),
        ({"tasks": {"T2AV": 0}}, "no weight above 0"),
        ({"tasks": {"T2AV": 1}, "sets": {}}, "sets"),
        ({"tasks": {"T2A": 1}, "audio_sets": {"audio_only": -1}}, "audio_sets"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_stage_says_what_to_do(fields, message):
    with pytest.raises(ValueError, match=message):
        StageConfig(**fields)


def test_unknown_stage_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'stage2'"):
        PretrainConfig().stage("stage2b")
