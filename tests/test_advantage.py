"""Advantages: per reward and group, routed, whitened; what cannot be scored or does not differ takes no
part."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.advantage import AdvantageConfig, Route, advantages

NAN = math.nan
PLAIN = AdvantageConfig(whiten=False)
WHOLE = AdvantageConfig(routed=False)
HALF = 1 / math.sqrt(2)
ROUTES = {
    "sync": Route(modality="both"),
    "wer": Route(modality="audio", weight=2.0),
    "picture": Route(modality="video", weight=0.5),
}


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def groups(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_two_gains_stay_twice_one_gain() -> None:
    """Sums (0, 2) and (0, 1): normalising the sum makes them equal, normalising each reward does not."""
    rewards = {"a": values(0, 1, 0, 1), "b": values(0, 1, 0, 0)}
    routes = {"a": Route(modality="both"), "b": Route(modality="both")}
    cells = groups(0, 0, 1, 1)
    sums = (rewards["a"] + rewards["b"]).view(2, 2)
    collapsed = (sums - sums.mean(1, keepdim=True)) / sums.std(1, keepdim=True)
    torch.testing.assert_close(collapsed[0], collapsed[1])
    found = advantages(rewards, cells, routes, PLAIN).video
    torch.testing.assert_close(found, values(-2 * HALF, 2 * HALF, -HALF, HALF), atol=1e-5, rtol=0)
    whitened = advantages(rewards, cells, routes, AdvantageConfig()).video
    torch.testing.assert_close(whitened[:2], 2 * whitened[2:], atol=1e-5, rtol=0)
    assert float(whitened.mean()) == pytest.approx(0, abs=1e-6) and float(whitened.std()) == pytest.approx(
        1, abs=1e-4
    )


def test_each_modality_hears_its_own_rewards() -> None:
    rewards = {"sync": values(0, 1), "wer": values(1, 0), "picture": values(0, 1)}
    found = advantages(rewards, groups(3, 3), ROUTES, PLAIN)
    torch.testing.assert_close(found.video, values(-HALF * 1.5, HALF * 1.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.audio, values(HALF, -HALF), atol=1e-5, rtol=0)  # sync against twice wer
    unrouted = advantages(rewards, groups(3, 3), ROUTES, replace(PLAIN, routed=False))
    assert torch.equal(unrouted.video, unrouted.audio)
    torch.testing.assert_close(unrouted.video, values(HALF * 0.5, -HALF * 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [PLAIN, AdvantageConfig()])
@pytest.mark.parametrize(("modality", "silent"), [("audio", "video"), ("video", "audio")])
def test_a_routed_reward_leaves_the_other_modality_exactly_zero(
    config: AdvantageConfig, modality, silent: str
) -> None:
    rewards = {"wer": torch.rand(12, generator=torch.Generator().manual_seed(0))}
    found = advantages(rewards, torch.arange(12) // 4, {"wer": Route(modality=modality)}, config)
    assert torch.equal(getattr(found, silent), torch.zeros(12)) and bool(
        (getattr(found, modality) != 0).all()
    )
    assert getattr(found, f"has_{modality}") and not getattr(found, f"has_{silent}")
    assert bool(found.valid.all()) and found.contrast == 1


@pytest.mark.parametrize("config", [PLAIN, AdvantageConfig()])
def test_a_constant_reward_brings_no_other_advantage_in(config: AdvantageConfig) -> None:
    """The picture is alike in every group, or in one: its advantage there is exactly zero, not the
    audio's."""
    rewards = {
        "wer": torch.rand(8, generator=torch.Generator().manual_seed(1)),
        "picture": values(*[0.3] * 8),
    }
    routes = {"wer": Route(modality="audio"), "picture": Route(modality="video")}
    found = advantages(rewards, torch.arange(8) // 4, routes, config)
    assert torch.equal(found.video, torch.zeros(8)) and found.has_video and bool((found.audio != 0).all())
    half = advantages(
        {**rewards, "picture": values(*[0.3] * 4, 1, 2, 3, 5)}, torch.arange(8) // 4, routes, config
    )
    assert torch.equal(half.video[:4], torch.zeros(4)) and bool((half.video[4:] != 0).all())
    if config.whiten:  # over the clips that differ in the picture, not diluted by the others
        assert float(half.video[4:].std()) == pytest.approx(1, abs=1e-4)


def test_an_unscored_clip_leaves_the_statistics() -> None:
    full = {"sync": values(0.1, 0.9, 0.4, 0.6, 0.2, 0.8), "wer": values(0.5, NAN, 0.2, 0.1, 0.7, 0.3)}
    routes = {"sync": Route(modality="both"), "wer": Route(modality="audio")}
    cells = groups(0, 0, 0, 0, 1, 1)
    found = advantages(full, cells, routes, AdvantageConfig())
    assert found.valid.tolist() == [True, False, True, True, True, True]
    assert float(found.video[1]) == 0 and float(found.audio[1]) == 0
    kept = torch.tensor([0, 2, 3, 4, 5])
    without = advantages(
        {name: reward[kept] for name, reward in full.items()}, cells[kept], routes, AdvantageConfig()
    )
    assert torch.equal(found.video[kept], without.video) and torch.equal(found.audio[kept], without.audio)


def test_a_reward_that_scored_none_of_a_group_does_not_apply_there() -> None:
    rewards = {"sync": values(0, 1, 0, 1), "timbre": values(NAN, NAN, 0.2, 0.8)}
    routes = {"sync": Route(modality="video"), "timbre": Route(modality="audio")}
    found = advantages(rewards, groups(0, 0, 1, 1), routes, PLAIN)
    assert bool(found.valid.all()) and found.skipped == 0
    torch.testing.assert_close(found.audio, values(0, 0, -HALF, HALF), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("rewards", "skipped", "valid"),
    [
        ((0.5, 0.5, 0.0, 1.0), 1, [False, False, True, True]),
        ((NAN, NAN, 0.0, 1.0), 1, [False, False, True, True]),
        ((NAN, 0.3, 0.0, 1.0), 1, [False, False, True, True]),  # one clip alone is no group
        ((0.5, 0.5 + 1e-7, 0.0, 1.0), 1, [False, False, True, True]),
        ((0.7, 0.7, 0.7, 0.7), 2, [False] * 4),
        ((NAN, NAN, NAN, NAN), 2, [False] * 4),
    ],
)
def test_groups_without_contrast_are_skipped_and_counted(
    rewards: tuple[float, ...], skipped: int, valid: list[bool]
) -> None:
    found = advantages(
        {"r": values(*rewards)}, groups(5, 5, 9, 9), {"r": Route(modality="both")}, AdvantageConfig()
    )
    assert found.skipped == skipped and found.contrast == (2 - skipped) / 2 and found.valid.tolist() == valid
    assert torch.equal(found.video[~found.valid], torch.zeros(valid.count(False))) and bool(
        found.audio.isfinite().all()
    )


def test_groups_are_told_apart_beyond_float_precision() -> None:
    large = 2**60
    found = advantages(
        {"r": values(0, 1, 5, 9)},
        groups(large, large, large + 1, large + 1),
        {"r": Route(modality="both")},
        PLAIN,
    )
    torch.testing.assert_close(found.video, values(-HALF, HALF, -HALF, HALF), atol=1e-5, rtol=0)


numbers = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN]), min_size=12, max_size=12)


@settings(max_examples=60)
@given(sync=numbers, wer=numbers, order=st.permutations(range(12)), whiten=st.booleans())
def test_the_order_of_clips_does_not_matter(
    sync: list[float], wer: list[float], order: list[int], whiten: bool
) -> None:
    cells, config = torch.arange(12) // 4, AdvantageConfig(whiten=whiten)
    rewards = {"sync": values(*sync), "wer": values(*wer)}
    routes = {"sync": Route(modality="both"), "wer": Route(modality="audio")}
    found = advantages(rewards, cells, routes, config)
    moved = advantages(
        {name: reward[order] for name, reward in rewards.items()}, cells[order], routes, config
    )
    for name in ("video", "audio"):
        torch.testing.assert_close(getattr(moved, name), getattr(found, name)[order], atol=1e-5, rtol=0)
        torch.testing.assert_close(getattr(found, name).view(3, 4).sum(1), torch.zeros(3), atol=1e-4, rtol=0)
        assert bool((getattr(found, name)[~found.valid] == 0).all())
    assert torch.equal(moved.valid, found.valid[order]) and (moved.skipped, moved.contrast) == (
        found.skipped,
        found.contrast,
    )


@settings(max_examples=40)
@given(
    rewards=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    scale=st.floats(0.5, 20),
    shift=st.floats(-5, 5),
)
def test_a_rewards_unit_does_not_matter(rewards: list[float], scale: float, shift: float) -> None:
    reward = torch.tensor(rewards, dtype=torch.float64).round(decimals=2)
    cells, routes = torch.arange(8) // 4, {"r": Route(modality="video", weight=3.0)}
    found = advantages({"r": reward}, cells, routes, PLAIN)
    other = advantages({"r": reward * scale + shift}, cells, routes, PLAIN)
    torch.testing.assert_close(found.video, other.video, atol=2e-3, rtol=0)
    assert torch.equal(found.valid, other.valid)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=12, max_size=12), st.integers(0, 20), st.integers(0, 20))
def test_the_pooled_deviation_is_of_the_groups_that_a_reward_applies_to(
    rewards: list[float], unscored: int, alone: int
) -> None:
    """Groups without a scored clip, or with one alone, have no degree of freedom and change nothing."""
    reward = torch.tensor(rewards, dtype=torch.float64).round(decimals=2)
    other = torch.linspace(0, 1, 4, dtype=torch.float64)
    routes, config = (
        {"r": Route(modality="audio"), "s": Route(modality="video")},
        replace(PLAIN, std="pooled"),
    )
    number = 3 + unscored + alone
    missing = torch.full((4,), NAN, dtype=torch.float64)
    lone = torch.tensor([0.5, NAN, NAN, NAN], dtype=torch.float64)
    more = {"r": torch.cat([reward, *[missing] * unscored, *[lone] * alone]), "s": other.repeat(number)}
    found = advantages(more, torch.arange(4 * number) // 4, routes, config)
    few = advantages({"r": reward, "s": other.repeat(3)}, torch.arange(12) // 4, routes, config)
    torch.testing.assert_close(found.audio[:12], few.audio, atol=1e-6, rtol=0)
    away = reward.view(3, 4) - reward.view(3, 4).mean(1, keepdim=True)
    if bool((reward.view(3, 4).std(1) > 1e-3).all()):
        expected = away / (away.square().sum() / 9).sqrt()
        torch.testing.assert_close(found.audio[:12].double(), expected.flatten(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("config", [PLAIN, AdvantageConfig()])
def test_rewards_that_cancel_leave_no_contrast(config: AdvantageConfig) -> None:
    rewards = {"a": values(0.1, 0.9, 0.4, 0.2, 0.7, 0.3), "b": values(0.9, 0.1, 0.6, 0.1, 0.2, 0.9)}
    routes = {name: Route(modality="both") for name in rewards}
    found = advantages(rewards, groups(0, 0, 0, 1, 1, 1), routes, config)
    assert found.valid.tolist() == [False] * 3 + [True] * 3 and found.skipped == 1
    if config.whiten:
        assert float(found.video[3:].std()) == pytest.approx(1, abs=1e-4)


def test_whitening_counts_valid_clips_only() -> None:
    rewards = {"r": values(0.1, 0.9, 0.3, 0.3, NAN, 0.2, 0.6, 0.5)}
    found = advantages(rewards, groups(0, 0, 1, 1, 2, 2, 2, 2), {"r": Route(modality="both")}, WHOLE)
    assert found.valid.tolist() == [True, True, False, False, False, True, True, True]
    kept = found.video[found.valid]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6) and float(kept.std()) == pytest.approx(
        1, abs=1e-4
    )


def test_errors_name_the_reward() -> None:
    cells, routes = groups(0, 0), {"sync": Route(modality="both")}
    with pytest.raises(ValueError, match="no route for reward 'wer'; did you mean 'sync'"):
        advantages({"sync": values(0, 1), "wer": values(0, 1)}, cells, routes, PLAIN)
    with pytest.raises(ValueError, match="route for 'sync', but no such reward; did you mean 'sync_c'"):
        advantages({"sync_c": values(0, 1)}, cells, routes, PLAIN)
    with pytest.raises(ValueError, match="'sync' is infinite"):
        advantages({"sync": values(0, math.inf)}, cells, routes, PLAIN)
    with pytest.raises(ValueError, match=r"'sync' has \(3,\) values for 2 clips"):
        advantages({"sync": values(0, 1, 2)}, cells, routes, PLAIN)
    with pytest.raises(ValueError, match="name at least one"):
        advantages({}, cells, {}, PLAIN)
    for weight in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match="a weight above 0"):
            Route(modality="both", weight=weight)
