"""Judges of the held-out prompts: paired changes, and the alarm when a reward rises while one falls."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.judges import Change, alarms, judge_changes, listed

VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=12)


@settings(deadline=None, max_examples=30)
@given(VALUES, st.floats(-3, 3))
def test_a_shift_of_every_prompt_is_the_change_and_has_no_width(values, shift):
    found = judge_changes({"ear": values}, {"ear": [value + shift for value in values]})["ear"]
    assert found.mean == pytest.approx(shift, abs=1e-9) and found.prompts == len(values)
    assert found.low == pytest.approx(found.high, abs=1e-9)


def test_only_prompts_scored_both_times_count():
    first, now = listed({"ear": torch.tensor([0.0, math.nan, 1.0, 2.0])}), [1.0, 9.0, 2.0, None]
    assert first["ear"][1] is None
    found = judge_changes(first, {"ear": now})["ear"]
    assert (found.mean, found.prompts) == (1.0, 2)
    assert judge_changes({"ear": [1.0, None]}, {"ear": [2.0, 3.0]}) == {}
    assert judge_changes({"ear": [1.0, 2.0]}, {"eye": [2.0, 3.0]}) == {}


def test_an_alarm_needs_a_risen_total_and_an_interval_below_zero():
    fell, unsure = Change(-0.3, -0.5, -0.1, 24), Change(-0.1, -0.3, 0.1, 24)
    same = dict.fromkeys(("ear", "eye"), Change(0.0, 0.0, 0.0, 24))
    assert alarms(0.2, {"ear": fell, "eye": unsure}, same) == ["ear"]
    assert alarms(-0.2, {"ear": fell}, same) == [] and alarms(0.0, {"ear": fell}, same) == []
    assert alarms(0.2, {"ear": unsure}, {"ear": fell, "eye": unsure}) == ["ear"]
