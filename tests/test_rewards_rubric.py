import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rewards import guardrails
from rewards.guardrails import GuardrailLimits, flags, measure_guardrails
from rewards.loudness import k_weighting, lufs, rms_dbfs
from rewards.normalisation import Moments, group_z
from rewards.options import fill
from rewards.rubric import Rubric, RubricItem
from rewards.types import Clip, Score

values_of_a_group = st.lists(st.integers(-1000, 1000), min_size=2, max_size=12)


def scored(values):
    return [Score(float(value), "" if value == value else "no face") for value in values]


def totals(rubric, columns, groups=None, **more):
    num = len(next(iter(columns.values())))
    return rubric.total(
        {name: scored(column) for name, column in columns.items()}, groups or ["prompt"] * num, **more
    )


def test_total_by_hand():
    rubric = Rubric(
        (
            RubricItem(reward="sync", weight=2.0),
            RubricItem(reward="wer", weight=-1.0),
            RubricItem(reward="raw", weight=0.5, normalise="none"),
        )
    )
    found = totals(rubric, {"sync": [1, 3], "wer": [0.5, 0.1], "raw": [10, 20]})
    assert [total.value for total in found.totals] == pytest.approx([-2 - 1 + 5, 2 + 1 + 10])
    assert found.totals[0].parts == pytest.approx({"sync": -2, "wer": -1, "raw": 5})


def test_groups_and_batch_differ():
    columns, groups = {"a": [0, 2, 10, 14]}, ["p", "p", "q", "q"]
    by_group = totals(Rubric((RubricItem(reward="a"),)), columns, groups)
    by_batch = totals(Rubric((RubricItem(reward="a", normalise="batch"),)), columns, groups)
    assert [total.value for total in by_group.totals] == pytest.approx([-1, 1, -1, 1])
    std = np.std([0, 2, 10, 14])
    assert [total.value for total in by_batch.totals] == pytest.approx(
        [(value - 6.5) / std for value in (0, 2, 10, 14)]
    )


@given(values_of_a_group, st.integers(-50, 50), st.integers(1, 100))
def test_z_ignores_shift_and_scale(values, shift, scale):
    before, _ = group_z(np.array(values, dtype=float), [0] * len(values))
    after, _ = group_z(np.array(values, dtype=float) * scale + shift, [0] * len(values))
    assert after == pytest.approx(before, abs=1e-9)


@given(values_of_a_group)
def test_z_has_mean_0_and_spread_1(values):
    assume(len(set(values)) > 1)
    found, flat = group_z(np.array(values, dtype=float), [0] * len(values))
    assert (found.mean(), found.std(), flat) == (pytest.approx(0, abs=1e-9), pytest.approx(1), 0)


def test_nan_leaves_the_statistics_of_every_item():
    rubric = Rubric((RubricItem(reward="a"), RubricItem(reward="b")))
    found = totals(rubric, {"a": [0, 2, 1000], "b": [1, 3, math.nan]})
    assert [total.value for total in found.totals[:2]] == pytest.approx([-2, 2])
    assert math.isnan(found.totals[2].value) and found.totals[2].reason == "b: no face"


def test_an_item_of_weight_0_is_not_required_and_not_counted():
    rubric = Rubric((RubricItem(reward="a"), RubricItem(reward="b", weight=0.0)))
    found = totals(rubric, {"a": [0, 2], "b": [math.nan, 9]})
    assert [total.value for total in found.totals] == pytest.approx([-1, 1])
    assert set(found.totals[0].parts) == {"a"}


def test_a_group_without_contrast_is_0_and_counted():
    found = totals(
        Rubric((RubricItem(reward="a"),)), {"a": [0.1 + 0.2, 0.3, 5, 7, 4]}, ["p", "p", "q", "q", "alone"]
    )
    assert [total.value for total in found.totals[:4]] == pytest.approx([0, 0, -1, 1])
    assert found.no_contrast == {"a": 2}


@pytest.mark.parametrize(
    ("normalise", "groups", "scored_clips"),
    [
        ("group", ["p", "p", "alone"], [0, 1]),
        ("group", [0, 1, 2], []),
        ("batch", [0, 1, 2], [0, 1, 2]),
        ("none", [0, 1, 2], [0, 1, 2]),
    ],
)
def test_what_has_nothing_to_be_compared_with_has_no_total(normalise, groups, scored_clips):
    rubric = Rubric((RubricItem(reward="a", normalise=normalise),))
    found = totals(rubric, {"a": [0.2, 0.9, 0.4]}, groups).totals
    assert [index for index, total in enumerate(found) if not math.isnan(total.value)] == scored_clips
    for index, total in enumerate(found):
        assert bool(total.reason) == (index not in scored_clips)
        assert not total.reason or "a: normalise: group has no other scored clip" in total.reason


@pytest.mark.parametrize("normalise", ["group", "batch", "running"])
def test_a_single_clip_has_no_z_score_but_a_raw_value(normalise):
    items = {"a": {"normalise": normalise}}
    (total,) = totals(Rubric.from_config(items), {"a": [3.0]}).totals
    assert math.isnan(total.value) and f"normalise: {normalise}" in total.reason
    (total,) = totals(Rubric.from_config({"a": {"normalise": "none"}}), {"a": [3.0]}).totals
    assert total.value == 3.0


def test_the_other_clip_of_a_prompt_must_have_a_value():
    found = totals(Rubric((RubricItem(reward="a"),)), {"a": [1.0, math.nan, 3, 4]}, ["p", "p", "q", "q"])
    assert "no other scored clip" in found.totals[0].reason and found.totals[1].reason == "a: no face"


def test_a_floor_of_a_clip_alone_in_its_group_gives_it_the_lowest_of_all():
    rubric = Rubric(
        (RubricItem(reward="a", normalise="none", floor=0.5), RubricItem(reward="b", normalise="none"))
    )
    found = totals(rubric, {"a": [0.1, 0.6, 0.9], "b": [9.0, 1.0, 2.0]}, ["p", "q", "r"])
    assert [total.value for total in found.totals] == pytest.approx([1.6, 1.6, 2.9])
    assert found.totals[0].parts["floor"] == pytest.approx(1.6 - 9.1) and found.beyond["a"].tolist() == [
        1,
        0,
        0,
    ]
    (alone,) = totals(rubric, {"a": [0.1], "b": [9.0]}).totals
    assert math.isnan(alone.value) and "a: 0.1 is beyond the floor 0.5" in alone.reason


def test_relative_totals_are_known_as_such():
    raw = {"a": {"normalise": "none"}}
    assert not Rubric.from_config({**raw, "b": {"weight": 0}}).relative
    assert Rubric.from_config({**raw, "b": {}}).relative


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(-9, 9) | st.just(math.nan), st.floats(-9, 9)),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_permuting_the_clips_permutes_the_totals(rows, shuffle):
    rubric = Rubric(
        (RubricItem(reward="a", floor=-3.0), RubricItem(reward="b", weight=-2.0, normalise="running"))
    )
    order = list(range(len(rows)))
    shuffle.shuffle(order)

    def run(some):
        return totals(
            rubric, {"a": [row[1] for row in some], "b": [row[2] for row in some]}, [row[0] for row in some]
        )

    before, after = run(rows), run([rows[index] for index in order])
    for place, index in enumerate(order):
        assert after.totals[place].value == pytest.approx(before.totals[index].value, abs=1e-9, nan_ok=True)
        assert after.totals[place].reason == before.totals[index].reason


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=12))
def test_parts_sum_to_the_total_and_a_floor_never_lifts(rows):
    items = (
        RubricItem(reward="a", floor=0.0),
        RubricItem(reward="b", weight=-2.0, normalise="batch", floor=4.0),
    )
    columns, groups = {"a": [row[1] for row in rows], "b": [row[2] for row in rows]}, [row[0] for row in rows]
    floored = totals(Rubric(items), columns, groups)
    free = totals(Rubric(tuple(dataclasses.replace(item, floor=None) for item in items)), columns, groups)
    for index, (total, other) in enumerate(zip(floored.totals, free.totals, strict=True)):
        if groups.count(groups[index]) == 1:  # nothing to compare it with
            assert math.isnan(total.value) and math.isnan(other.value) and total.reason
            continue
        assert sum(total.parts.values()) == pytest.approx(total.value, abs=1e-9)
        beyond = columns["a"][index] < 0 or columns["b"][index] > 4
        lowest = min(
            one.value for one, group in zip(free.totals, groups, strict=True) if group == groups[index]
        )
        assert total.value == pytest.approx(lowest if beyond else other.value, abs=1e-9)


def test_a_floor_with_nan_takes_the_clip_out():
    rubric = Rubric((RubricItem(reward="wer", weight=-1.0, normalise="none", floor=0.5, below="nan"),))
    found = totals(rubric, {"wer": [0.2, 0.9]})
    assert found.totals[0].value == pytest.approx(-0.2)
    assert math.isnan(found.totals[1].value) and found.totals[1].reason == "wer: 0.9 is beyond the floor 0.5"
    assert found.floored == {"wer": 1}


def test_parts_of_a_reward_and_wrong_names():
    scores = {
        "sync": [
            Score(1.0, parts={"rho_zero": 5.0}),
            Score(2.0, parts={"rho_zero": 7.0}),
            Score(math.nan, "no face"),
        ]
    }
    found = Rubric((RubricItem(reward="sync.rho_zero", normalise="none"),)).total(scores, "ppp")
    assert [total.value for total in found.totals[:2]] == [5.0, 7.0] and found.totals[
        2
    ].reason == "sync.rho_zero: no face"
    with pytest.raises(ValueError, match="no part 'rho_zer'; did you mean 'rho_zero'"):
        Rubric((RubricItem(reward="sync.rho_zer"),)).total(scores, "ppp")
    with pytest.raises(ValueError, match="'synk' was not scored; did you mean 'sync'"):
        Rubric((RubricItem(reward="synk"),)).total(scores, "ppp")


@given(st.lists(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=6), min_size=1, max_size=5))
def test_running_moments_are_those_of_everything(batches):
    moments = Moments()
    for batch in batches:
        moments = moments.merged(np.array(batch))
    seen = [value for batch in batches for value in batch if value == value]
    assert moments.count == len(seen)
    if seen:
        assert moments.mean == pytest.approx(np.mean(seen), abs=1e-9)
        assert moments.std == pytest.approx(np.std(seen), abs=1e-7)


def test_running_goes_on_where_it_stopped():
    rubric = Rubric((RubricItem(reward="a", normalise="running"),))
    first = totals(rubric, {"a": [0, 4]})
    second = totals(rubric, {"a": [2, 6]}, running=first.running)
    assert [total.value for total in second.totals] == pytest.approx(
        [(2 - 3) / math.sqrt(5), (6 - 3) / math.sqrt(5)]
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sync": {"weigth": 1}}, "items.sync.weigth: unknown option; did you mean 'weight'"),
        ({"sync": {"normalise": "grup"}}, "items.sync.normalise: unknown value 'grup'; did you mean 'group'"),
        ({"sync": {"weight": "much"}}, "items.sync.weight: expected float, got 'much'"),
        ({"sync": {"weight": True}}, "items.sync.weight: expected float, got True"),
        ({"sync": {"weight": 0}}, "no item with a weight other than 0"),
        ({"sync": {"weight": 0, "floor": 1}}, "items.sync: a floor needs a weight other than 0"),
        ({"sync": {"weight": math.inf}}, "items.sync.weight: expected finite numbers"),
        ({"sync": 3}, "items.sync: expected a mapping of options, got 3"),
        ({}, "items: expected a mapping of rewards"),
    ],
)
def test_wrong_configs_say_where(config, message):
    with pytest.raises(ValueError, match=message):
        Rubric.from_config(config)


def test_config_to_items():
    rubric = Rubric.from_config(
        {"sync": {"weight": "1e-1", "floor": 0}, "wer": {"weight": -2, "normalise": "none"}, "plain": None}
    )
    assert rubric.items[0] == RubricItem(reward="sync", weight=0.1, floor=0.0)
    assert [(item.reward, item.weight, item.normalise) for item in rubric.items[1:]] == [
        ("wer", -2.0, "none"),
        ("plain", 1.0, "group"),
    ]


def sine(hz=997.0, seconds=2.0, rate=48_000, peak=1.0):
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_loudness_of_a_full_scale_sine_and_of_the_standards_filter():
    assert rms_dbfs(sine()) == pytest.approx(-3.01, abs=0.01)
    assert lufs(sine(), 48_000) == pytest.approx(-3.01, abs=0.01)
    assert lufs(sine(peak=0.1), 48_000) == pytest.approx(-23.01, abs=0.01)
    shelf, cut = k_weighting(48_000)
    assert shelf[0] == pytest.approx(
        [1.53512485958697, -2.69169618940638, 1.19839281085285]
    )  # the standard's own table
    assert shelf[1] == pytest.approx([1, -1.69065929318241, 0.73248077421585])
    assert cut[1] == pytest.approx([1, -1.99004745483398, 0.99007225036621])


def test_gates_leave_silence_out_of_the_loudness():
    padded = np.concatenate([sine(peak=0.1, seconds=4), np.zeros(48_000 * 4, dtype=np.float32)])
    assert lufs(padded, 48_000) == pytest.approx(-23.01, abs=0.4)  # blocks over the edge count
    assert rms_dbfs(padded) == pytest.approx(-26.02, abs=0.01)
    quieter = np.concatenate(
        [sine(peak=0.1, seconds=4), sine(peak=0.1 * 10 ** (-15 / 20), seconds=4)]
    )  # under the relative gate alone
    assert lufs(quieter, 48_000) == pytest.approx(-23.01, abs=0.4)
    assert lufs(np.zeros(48_000), 48_000) == rms_dbfs(np.zeros(10)) == -120.0


def test_measurements_by_hand():
    frames = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    frames[1] = 51  # a fifth of full scale up, then down again
    loud = sine(rate=16_000, peak=2.0, seconds=1)
    found = measure_guardrails(Clip(loud, 16_000, frames))
    assert found["motion"] == pytest.approx(0.2, abs=1e-6)
    assert found["clipping_ratio"] == pytest.approx(2 / 3, abs=0.01)  # |sin| > 1/2
    assert flags(found, GuardrailLimits(max_lufs=None, min_speech_ratio=None)) == (
        f"clipping_ratio {found['clipping_ratio']:.4g} > 0.001",
    )


def test_a_dead_clip_is_flagged_and_a_missing_side_is_not():
    still = np.zeros((5, 8, 8, 3), dtype=np.uint8)
    dead = measure_guardrails(Clip(np.zeros(16_000, dtype=np.float32), 16_000, still))
    assert (dead["speech_ratio"], dead["motion"], dead["loudness_dbfs"], dead["clipping_ratio"]) == (
        0,
        0,
        -120,
        0,
    )
    assert [flag.split()[0] for flag in flags(dead, GuardrailLimits())] == [
        "speech_ratio",
        "motion",
        "loudness_dbfs",
    ]
    absent = measure_guardrails(Clip(None, 16_000, None))
    assert all(math.isnan(value) for value in absent.values()) and flags(absent, GuardrailLimits()) == ()


def test_broken_sound_is_not_measured():
    for waveform in (
        np.full(16_000, np.nan, dtype=np.float32),
        np.ones(16_000, dtype=np.int16),
        np.zeros(0, dtype=np.float32),
    ):
        assert math.isnan(measure_guardrails(Clip(waveform, 16_000))["loudness_dbfs"])


def test_speech_is_heard_in_speech_like_sound_only():
    rng = random.Random(0)
    voiced = sum(sine(140.0 * harmonic, 2.0, 16_000, 0.2 / harmonic) for harmonic in range(1, 20))
    gate = np.repeat([rng.random() < 0.5 for _ in range(20)], 1600)
    assert guardrails.speech_ratio(voiced * gate) > 0.3
    assert guardrails.speech_ratio(np.zeros(32_000, dtype=np.float32)) == 0.0


def test_options_are_strict():
    with pytest.raises(
        ValueError, match=r"guardrails.min_mottion: unknown option; did you mean 'min_motion'"
    ):
        fill(GuardrailLimits, {"min_mottion": 1}, "guardrails")
    assert fill(GuardrailLimits, {"min_motion": None}, "guardrails").min_motion is None


def test_guardrails_cannot_be_earned():
    assert not hasattr(guardrails, "name") and not any(
        hasattr(value, "score") for value in vars(guardrails).values()
    )
