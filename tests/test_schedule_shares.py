"""Each stage of the shipped recipes draws its tasks and sets at their ratios, on any number of ranks."""

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import sets

from experiments.recipes.load import load_recipe
from experiments.recipes.nava_6b import AUDIO_VISUAL_TASKS
from pretrain.data.stream.loader import Slice, StageLoader
from pretrain.data.stream.sample_set import SampleSet
from pretrain.schedule import StageConfig, TaskDraw, task_of_step
from pretrain.types import Task

STEPS, SEED = 10_000, 11
PARAMS = Path(__file__).parents[1] / "params.yaml"
STAGES = {
    f"{name} {stage.name}": stage
    for name, params in (("nava_6b", None), ("mini", PARAMS))
    for stage in load_recipe(name, params).pretrain.stages.values()
}
RATIOS = {"stage1": (3, 1), "stage2": (1, 3), "stage3": (0, 1)}  # audio-only : audio-visual (nava.md, 3)


def bound(share: float, draws: int) -> float:
    """Five standard deviations of the number of hits among independent draws: 1 in 1.7 million is beyond."""
    return 5 * math.sqrt(draws * share * (1 - share))


def assert_ratios(stage: StageConfig, drawn: list[TaskDraw]) -> None:
    tasks = Counter(draw.task.value for draw in drawn)
    assert set(tasks) == {name for name, weight in stage.tasks.items() if weight > 0}
    for name, weight in stage.tasks.items():
        share = weight / sum(stage.tasks.values())
        assert abs(tasks[name] - share * len(drawn)) <= bound(share, len(drawn)), name
    for heard, weights in ((True, stage.audio_sets), (False, stage.sets)):
        own = Counter(draw.set_name for draw in drawn if (draw.task is Task.T2A) is heard)
        for name, weight in weights.items() if own else ():
            share = weight / sum(weights.values())
            assert abs(own[name] - share * own.total()) <= bound(share, own.total()), name


@pytest.mark.parametrize("name", STAGES)
def test_draws_match_the_ratios_over_ten_thousand_steps(name):
    stage = STAGES[name]
    assert_ratios(stage, [task_of_step(SEED, stage, step) for step in range(1, STEPS + 1)])


def test_the_bound_finds_a_mix_that_is_a_twentieth_off():
    stage = STAGES["nava_6b stage2"]
    drawn = [task_of_step(SEED, stage, step) for step in range(1, STEPS + 1)]
    other = StageConfig(name="stage2", tasks={**stage.tasks, "T2AV": 1.05 * stage.tasks["T2AV"] + 0.15})
    with pytest.raises(AssertionError, match="T2AV"):
        assert_ratios(other, drawn)


def test_the_papers_run_draws_all_five_tasks_at_the_papers_ratios():
    stages = load_recipe("nava_6b").pretrain.stages
    assert list(stages) == list(RATIOS)
    for name, (audio, both) in RATIOS.items():
        weights = stages[name].tasks
        assert set(weights) == set(Task)
        assert weights["T2A"] * both == pytest.approx(
            audio * sum(weights[task] for task in AUDIO_VISUAL_TASKS)
        )
        for task, share in AUDIO_VISUAL_TASKS.items():
            assert weights[task] == pytest.approx(both * share)
    assert sum(AUDIO_VISUAL_TASKS.values()) == pytest.approx(1.0)


def loader(stage: StageConfig, rank: int, world: int, seed: int, batch: int) -> StageLoader:
    toys, taken = sets(), {**stage.sets, **stage.audio_sets}
    given = {
        name: SampleSet(name, toys["audio_only" if name in stage.audio_sets else "paired"].samples)
        for name in taken
    }
    return StageLoader(stage, given, seed, batch, Slice(rank, world, batch // world))


@given(st.sampled_from(sorted(STAGES)), st.integers(1, 12), st.integers(0, 2**31), st.integers(1, 10))
@settings(max_examples=25, deadline=None)
def test_all_ranks_train_on_the_task_that_was_drawn(name, world, seed, steps):
    stage = STAGES[name]
    expected = [task_of_step(seed, stage, step).task for step in range(1, steps + 1)]
    for rank in range(world):
        batches = [batch for batch, _ in islice(loader(stage, rank, world, seed, 2 * world), steps)]
        assert [list(Task)[int(batch["task"])] for batch in batches] == expected
        assert all(len(batch["sample_ids"]) == 2 for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("name", sorted(name for name in STAGES if name.startswith("nava_6b")))
def test_what_ranks_are_given_over_ten_thousand_steps_matches_the_ratios(name, world):
    stage = STAGES[name]
    counts = [
        Counter(
            list(Task)[int(batch["task"])].value
            for batch, _ in islice(loader(stage, rank, world, SEED, world), STEPS)
        )
        for rank in range(world)
    ]
    assert all(count == counts[0] for count in counts)
    for task, weight in stage.tasks.items():
        share = weight / sum(stage.tasks.values())
        assert abs(counts[0][task] - share * STEPS) <= bound(share, STEPS), task
