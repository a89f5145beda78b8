"""Intervals of few values: their coverage by simulation, Student's by scipy, and what one value gives."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from experiments.report.before_after import beyond_codec
from experiments.report.page import page_environment
from experiments.report.pictures import before_after_dots
from experiments.report.summary import short_interval
from experiments.scoring.few_clusters import FEW, FEWEST_JUDGED
from experiments.scoring.statistics import (
    ClipDraws,
    Draws,
    Interval,
    Table,
    bootstrap_closed,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    mean_over_seeds,
)
from experiments.studies import page
from experiments.studies.plot import errorbars

TRIALS, RESAMPLES = 400, 200
DRAWN = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size) - 1,
}


def coverage(kind: str, count: int) -> tuple[float, float]:
    """Of the mean, which is 0: by what is shown, and by percentiles."""
    rng = np.random.default_rng(count)
    trials = DRAWN[kind](rng, (TRIALS, count))
    found = [bootstrap_mean(values.tolist(), num_resamples=RESAMPLES) for values in trials]
    resamples = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    low, high = np.quantile(trials @ resamples.T, (0.025, 0.975), axis=1)
    covered = [one.low <= 0 <= one.high for one in found]
    return float(np.mean(covered)), float(np.mean((low <= 0) & (high >= 0)))


@pytest.mark.parametrize("count", [2, FEWEST_JUDGED, FEW - 1])
def test_of_few_normal_values_95_in_100_are_covered_where_percentiles_cover_fewer(count):
    shown, drawn = coverage("normal", count)
    assert 0.92 <= shown <= 0.98 and drawn < 0.92


def test_from_ten_on_percentiles_cover_nine_of_ten():
    shown, _ = coverage("normal", FEW)
    assert shown >= 0.87


def test_of_skewed_values_more_are_covered_than_by_percentiles():
    shown, drawn = coverage("exponential", 3)
    assert shown >= 0.84 and shown > drawn + 0.02


few_values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=FEW - 1)


@settings(max_examples=30, deadline=None)
@given(few_values.filter(lambda values: np.std(values) > 1e-3))
def test_it_is_the_interval_of_the_t_test(values):
    found = bootstrap_mean(values, num_resamples=10)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)
    ones, zeros = [1.0] * (len(values) + 1), [0.0] * (len(values) + 1)
    moved = bootstrap_difference(([*values, math.nan], ones), (zeros, ones), num_resamples=10)
    assert (moved.low, moved.high) == pytest.approx((found.low, found.high), rel=1e-9, abs=1e-9)
    assert (moved.n, moved.unscored, moved.clusters) == (len(values), 1, len(values))


def test_a_ratio_of_sums_is_linearised():
    """Errors over words of 8 clips: the standard error of a ratio estimator (Cochran 1977, 6.4)."""
    errors, words = np.array([1.0, 0, 2, 1, 0, 3, 1, 0]), np.array([4.0, 5, 6, 3, 4, 8, 5, 5])
    found, ratio = bootstrap_ratio(errors.tolist(), words.tolist()), errors.sum() / words.sum()
    error = math.sqrt(((errors - ratio * words) ** 2).sum() / 7 / 8) / words.mean()
    assert (found.low, found.high) == pytest.approx(
        (ratio - 2.364624 * error, ratio + 2.364624 * error), rel=1e-6
    )


@pytest.mark.parametrize("values", [[12.0], [10.0, 10.0], [0.1] * 5, [7.0, math.nan]])
def test_one_value_or_a_few_equal_ones_have_a_mean_and_no_interval(values):
    found = bootstrap_mean(values)
    assert found.as_json() == {"mean": values[0], "low": None, "high": None, "n": sum(v == v for v in values)}
    assert bootstrap_mean([1.0] * FEWEST_JUDGED).as_json()["low"] == 1.0


def test_copies_of_one_cluster_are_one():
    found = bootstrap_ratio([1.0, 2.0, 3.0], [1.0] * 3, clusters=["a"] * 3)
    assert (found.mean, found.n, found.clusters) == (2.0, 3, 1) and math.isnan(found.low)


@pytest.mark.parametrize(
    ("clusters", "says"), [(1, "too few"), (5, "too few"), (6, "better"), (None, "better")]
)
def test_a_verdict_needs_six(clusters, says):
    assert Interval(1.0, 0.5, 1.5, 40, clusters=clusters).classify(True) == says
    assert Interval(1.0, math.nan, math.nan, 1).classify(True) == "not measured"


def test_there_is_no_share_of_a_gap_that_few_show():
    many, few = ([5.0, 6.0] * 5, [1.0] * 10), ([5.0, 6.0], [1.0] * 2)
    after, goal = ([3.0, 4.0] * 5, [1.0] * 10), ([1.0, 2.0] * 5, [1.0] * 10)
    assert bootstrap_closed(many, after, goal).mean == pytest.approx(0.5)
    assert math.isnan(bootstrap_closed(few, ([3.0, 4.0], [1.0] * 2), goal).mean)
    assert math.isnan(bootstrap_closed(many, after, few).mean)


def test_one_clip_of_a_study_has_no_interval_either():
    one = Table.of([[(1.0, 1.0), None], [(3.0, 1.0), None]])
    found = mean_over_seeds(one, Draws.crossed(2, 2, 50))
    assert found.mean == 2.0 and math.isnan(found.low)
    two = mean_over_seeds(Table.of([[(1.0, 1.0), (3.0, 1.0)]]), ClipDraws.make(2, 50, 0))
    assert two.low < 2.0 < two.high


def test_a_change_without_an_interval_goes_no_further_beyond_the_codec():
    metric = {"better": "higher", "beyond_codec": True, "beyond_codec_before": True}
    metric["difference"] = {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert beyond_codec({"metrics": {"sync_judge": metric}}) == []


def test_pages_and_pictures_show_a_mean_without_its_interval():
    alone = {"mean": 0.5, "low": None, "high": None, "n": 1}
    environment = page_environment()
    environment.filters |= {"marked_prompt": str, "data_uri": str}
    cell = environment.get_template("parts.html.j2").module.cell(alone)  # type: ignore[attr-defined]
    assert "<td>0.500</td>" in cell and "None" not in cell
    assert (short_interval(alone), page.interval(alone), page.signed(alone)) == ("0.500", "0.500", "+0.500")
    axes = Figure().subplots()
    errorbars(axes, [(0.0, alone), (1.0, {"mean": 0.5, "low": 0.4, "high": 0.7})], {})
    (bars,) = axes.containers[0][2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [[0.5, 0.5], pytest.approx([0.4, 0.7])]
    sides = {side: alone for side in ("before", "after", "codec")}
    drawn = {"metrics": {"sync_judge": {"role": "judge", "better": "higher", "difference": alone, **sides}}}
    assert before_after_dots(drawn).startswith(b"\x89PNG")
