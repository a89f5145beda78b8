"""The arithmetic of best of n: what is paired, what is missing, what it costs."""

import math

import pytest

from experiments.benchmarks.best_of import ARMS, Costs, by_prompt, compared, table


def test_a_prompt_s_value_is_the_mean_of_its_scored_clips():
    column = {"a-s0": 1.0, "a-s1": 3.0, "b-s0": math.nan, "b-s1": 2.0, "c-s0": math.nan}
    found = by_prompt(column, {"a": ["a-s0", "a-s1"], "b": ["b-s0", "b-s1"], "c": ["c-s0"]})
    assert found[:2] == [2.0, 2.0] and math.isnan(found[2])


def test_differences_are_paired_by_prompt():
    """Prompts differ by ten; the gain is one in each, so its interval is a point."""
    one = [*(10.0 * prompt for prompt in range(10)), math.nan]
    found = compared({ARMS[0]: one, ARMS[1]: [x + 1 for x in one], ARMS[2]: [x + 3 for x in one]})
    gain = found[f"{ARMS[1]} - {ARMS[0]}"]
    assert (gain["mean"], gain["low"], gain["high"], gain["n"]) == (1.0, 1.0, 1.0, 10)
    assert found[f"{ARMS[2]} - {ARMS[1]}"]["mean"] == 2.0
    assert found[ARMS[0]]["low"] < 45 < found[ARMS[0]]["high"]


def test_costs_are_kept_over_calls_and_nothing_done_counts_nothing(tmp_path):
    costs = Costs(tmp_path / "costs.json")
    costs.steps["candidates"] = {"cpu_s": 30.0, "clips": 10}
    costs.count("candidates", lambda: 5)
    costs.count("candidates", lambda: 0)
    costs.count("chosen", lambda: 0)
    again = Costs(tmp_path / "costs.json")
    assert again.steps["candidates"]["clips"] == 15 and "chosen" not in again.steps
    assert again.per_clip("candidates") == pytest.approx(2.0, abs=0.1)


def test_the_table_has_a_row_for_each_metric_and_the_cost():
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    number = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    names = (*ARMS, f"{ARMS[1]} - {ARMS[0]}", f"{ARMS[2]} - {ARMS[1]}")
    metrics = {"sync_judge": {"role": "judge", **dict.fromkeys(names, number), ARMS[2]: nothing}}
    costs = {"cpu_s_per_clip": dict(zip(ARMS, (1.0, 8.0, 1.0), strict=True))}
    lines = table({"candidates": 8, "metrics": metrics, "costs": costs}).splitlines()
    assert "best of 8" in lines[0] and "+0.500 (+0.400 to +0.600), n 9" in lines[2]
    assert "not measured" in lines[2] and "| 8.0 |" in lines[3]
