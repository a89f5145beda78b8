"""Floors of advantages, against the rule of rewards.rubric and in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.advantage import AdvantageConfig, Floor, Route, advantages
from finetune.recipe import AlignConfig, RubricConfig
from pretrain.config import from_json, override, to_json
from rewards.rubric import Rubric
from rewards.types import Score

PLAIN = AdvantageConfig(whiten=False, eps=0.0)
VALUES = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=8, max_size=8
)  # two groups of four clips, two rewards


def tensors(values: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[index] / 7 for row in values]) for index, name in enumerate(("a", "b"))}


GROUPS = torch.tensor([0] * 4 + [1] * 4)


@settings(deadline=None)
@given(VALUES, st.integers(-40, 40), st.sampled_from(["lowest", "nan"]))
def test_floors_follow_the_rule_of_the_rubric(values, floor, below):
    """Without whitening a group's advantages are the rubric's totals less their mean, but for sample and
    population std."""
    rewards, least = tensors(values), floor / 7 + 1e-3
    routes = {
        "a": Route(modality="both", floor=Floor(floor=least, below=below)),
        "b": Route(modality="both", weight=0.5),
    }
    found = advantages(rewards, GROUPS, routes, PLAIN)
    rubric = Rubric.from_config({"a": {"floor": least, "below": below}, "b": {"weight": 0.5}})
    scores = {name: [Score(float(value)) for value in column] for name, column in rewards.items()}
    totals = np.array([score.value for score in rubric.total(scores, GROUPS.tolist()).totals])
    for group in (0, 1):
        mine, theirs = found.video[group == GROUPS].numpy(), totals[GROUPS.numpy() == group]
        kept = ~np.isnan(theirs)
        valid = found.valid[group == GROUPS].numpy()
        assert not (valid & ~kept).any()
        if not valid.any():  # no contrast, or none left
            assert kept.sum() < 2 or np.ptp(theirs[kept]) < 1e-9
            continue
        assert (valid == kept).all() and not mine[~kept].any()
        count = int(kept.sum())
        expected = (theirs[kept] - theirs[kept].mean()) * math.sqrt((count - 1) / count)
        np.testing.assert_allclose(mine[kept], expected, atol=1e-4)


@settings(deadline=None)
@given(VALUES, st.integers(-40, 40), st.booleans(), st.sampled_from(["lowest", "nan"]))
def test_a_floor_moves_no_advantage_from_one_prompt_to_another(values, floor, whiten, below):
    """Clips pushed to the bottom of one group raise no clip of a group without them."""
    routes = {
        "a": Route(modality="audio", floor=Floor(floor=floor / 7 + 1e-3, below=below)),
        "b": Route(modality="both"),
    }
    found = advantages(tensors(values), GROUPS, routes, AdvantageConfig(whiten=whiten))
    for column in (found.video, found.audio):
        torch.testing.assert_close(column.view(2, 4).sum(1), torch.zeros(2), atol=1e-4, rtol=0)


@settings(deadline=None)
@given(VALUES, st.integers(-40, 40))
def test_a_clip_beyond_a_floor_is_the_lowest_of_its_group_in_both_modalities(values, floor):
    rewards, least = tensors(values), floor / 7 + 1e-3
    routes = {
        "a": Route(modality="audio", floor=Floor(floor=least)),
        "b": Route(modality="video"),
    }
    found = advantages(rewards, GROUPS, routes, AdvantageConfig())
    for group in (0, 1):
        inside = (group == GROUPS) & found.valid
        beyond = inside & (rewards["a"] < least)
        for column in (found.video, found.audio):
            if beyond.any():
                torch.testing.assert_close(
                    column[beyond], column[inside].min().expand(int(beyond.sum())), atol=1e-6, rtol=0
                )


@settings(deadline=None)
@given(VALUES)
def test_a_floor_that_nothing_is_beyond_changes_nothing(values):
    rewards = tensors(values)
    plain = {"a": Route(modality="audio"), "b": Route(modality="video", weight=2.0)}
    for below in ("lowest", "nan"):
        floor = Floor(floor=-100.0, below=below)
        floored = {name: replace(route, floor=floor) for name, route in plain.items()}
        one, two = (advantages(rewards, GROUPS, routes, AdvantageConfig()) for routes in (plain, floored))
        assert torch.equal(one.video, two.video) and torch.equal(one.audio, two.audio)
        assert torch.equal(one.valid, two.valid)


@settings(deadline=None, max_examples=60)
@given(VALUES, st.booleans(), st.booleans())
def test_a_group_all_beyond_a_floor_is_skipped_and_leaves_no_trace(values, whiten, routed):
    """Its clips are all the lowest: nothing tells them apart, and the other groups are as without it."""
    rewards = tensors(values)
    added = {"a": torch.tensor([-100.0, -99.0, -98.0, -90.0]), "b": torch.tensor([3.0, 1.0, 4.0, 1.5])}
    more = {name: torch.cat([rewards[name], added[name]]) for name in rewards}
    routes = {"a": Route(modality="audio", floor=Floor(floor=-50.0)), "b": Route(modality="video")}
    config = AdvantageConfig(whiten=whiten, routed=routed)
    alone = advantages(rewards, GROUPS, routes, config)
    found = advantages(more, torch.tensor([*GROUPS.tolist(), 2, 2, 2, 2]), routes, config)
    assert not found.valid[8:].any() and found.skipped == alone.skipped + 1
    assert found.contrast == pytest.approx(alone.contrast * 2 / 3)
    assert torch.equal(found.valid[:8], alone.valid)
    for column, other in ((found.video, alone.video), (found.audio, alone.audio)):
        assert not column[8:].any() and torch.equal(column[:8], other)


@pytest.mark.parametrize("whiten", [True, False])
def test_rounds_whose_groups_are_all_beyond_a_floor_have_no_contrast(whiten):
    """Whitening scales the constants of groups to deviation 1: a difference between prompts, not clips."""
    values = torch.rand(16, generator=torch.Generator().manual_seed(0))
    routes = {"a": Route(modality="both", floor=Floor(floor=2.0)), "b": Route(modality="both")}
    cells = torch.arange(4).repeat_interleave(4)
    found = advantages({"a": values, "b": values.flip(0)}, cells, routes, AdvantageConfig(whiten=whiten))
    assert (found.contrast, found.skipped) == (0.0, 4)
    assert not found.valid.any() and not found.video.any() and not found.audio.any()


def test_a_floor_may_leave_contrast_in_one_modality():
    """Beyond the floor are the last two; the sound's lowest is the first clip's, so all three are alike."""
    rewards = {"a": torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), "b": torch.tensor([3.0, 1.0, 2.0] * 2)}
    routes = {"a": Route(modality="audio"), "b": Route(modality="video"), "c": Route(modality="video")}
    routes["c"] = replace(routes["c"], weight=1e-3, floor=Floor(floor=0.0))
    floored = {**rewards, "c": torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0])}
    found = advantages(floored, torch.tensor([0] * 3 + [1] * 3), routes, AdvantageConfig())
    assert found.valid.all() and (found.contrast, found.skipped) == (1.0, 0)
    assert not found.audio[:3].any() and found.video[0] > found.video[1] == found.video[2]
    torch.testing.assert_close(found.audio[3:], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-5, rtol=0)


def test_a_clip_that_a_floor_drops_leaves_the_statistics():
    rewards = {"a": torch.tensor([0.0, 1.0, 2.0, -9.0])}
    routes = {"a": Route(modality="both", floor=Floor(floor=-1.0, below="nan"))}
    found = advantages(rewards, torch.zeros(4, dtype=torch.int64), routes, PLAIN)
    torch.testing.assert_close(found.video, torch.tensor([-1.0, 0.0, 1.0, 0.0]))
    assert found.valid.tolist() == [True, True, True, False]


def test_a_floor_in_the_recipe_belongs_to_a_reward_and_is_read_back():
    given = {"rubric": {"floors": {"sync_mini": {"floor": 0.2, "below": "nan"}}}}
    made = override(AlignConfig(), given)
    assert made.rubric.routes()["sync_mini"].floor == Floor(floor=0.2, below="nan")
    assert from_json(AlignConfig, to_json(made)) == made
    with pytest.raises(ValueError, match=r"rubric.floors: 'sync' has no weight.*sync_mini"):
        RubricConfig(floors={"sync": Floor(floor=0.0)})
    with pytest.raises(ValueError, match="below lowest or nan"):
        Floor(floor=0.0, below="none")  # type: ignore[arg-type]
