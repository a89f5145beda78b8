import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.gsb.statistics import Z, gsb_error, holm, larger_clusters, pair_statistics
from pretrain.statistics import cluster_bootstrap


def statistics(good, same, bad, raters=None, prompts=None):
    verdicts = [1] * good + [0] * same + [-1] * bad
    n = len(verdicts)
    return pair_statistics(
        verdicts, raters or [f"u{i}" for i in range(n)], prompts or [f"c{i}" for i in range(n)]
    )


def test_figures_by_hand():
    found = statistics(6, 2, 2)
    assert (found.good, found.same, found.bad, found.gsb, found.tie_split, found.win_rate) == (
        6,
        2,
        2,
        0.4,
        0.7,
        0.75,
    )
    assert found.gsb_se == pytest.approx(math.sqrt((0.6 + 0.2 - 0.16) / 10))
    assert (found.gsb_interval, found.gsb_low) == (
        "analytic",
        pytest.approx(0.4 - 1.959964 * found.gsb_se, abs=1e-6),
    )
    assert found.sign_p == pytest.approx(2 * (28 + 8 + 1) / 256)  # 6 or more of 8, both tails


def test_wilson_by_its_formula():
    found = statistics(15, 7, 5)
    n, share, z2 = 20, 0.75, Z * Z
    middle, half = (
        (share + z2 / 2 / n) / (1 + z2 / n),
        Z * math.sqrt(share * (1 - share) / n + z2 / 4 / n**2) / (1 + z2 / n),
    )
    assert (found.win_low, found.win_high) == pytest.approx((middle - half, middle + half))


def test_the_published_rule_of_thumb_for_the_half_width():
    assert Z * gsb_error(98, 55, 97) == pytest.approx(0.11, abs=0.003)  # n = 250 with 22 % ties


def test_ties_alone_have_no_win_rate():
    found = statistics(0, 30, 0)
    assert (found.gsb, found.sign_p) == (0, 1) and math.isnan(found.win_rate)
    assert found.as_json()["win_rate"] is None and found.as_json()["win_low"] is None


@pytest.mark.parametrize("counts", [(12, 0, 0), (0, 12, 0), (0, 0, 12)])
def test_an_interval_never_lacks_width(counts):
    found = statistics(*counts)
    assert (
        found.gsb_interval == "adjusted"
        and found.gsb_low < found.gsb_high
        and found.gsb_low <= found.gsb <= found.gsb_high
    )
    clustered = statistics(
        *counts, raters=[f"u{i}" for i in range(12)], prompts=[f"c{i // 2}" for i in range(12)]
    )
    assert clustered.gsb_low < clustered.gsb_high


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_seen_from_the_other_side_all_is_mirrored(good, same, bad):
    if not good + same + bad:
        return
    here, there = statistics(good, same, bad), statistics(bad, same, good)
    assert here.gsb == -there.gsb and here.sign_p == pytest.approx(there.sign_p)
    assert (here.gsb_low, here.gsb_high) == pytest.approx((-there.gsb_high, -there.gsb_low))
    assert here.tie_split + there.tie_split == pytest.approx(1)
    assert -1 <= here.gsb_low <= here.gsb <= here.gsb_high <= 1
    if good + bad:
        assert here.win_low + there.win_high == pytest.approx(1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values):
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, len(p_values) * raw) + 1e-12


def test_holm_agrees_with_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.2, 0.001, 0.04, 0.04, 0.9]
    assert holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))


def test_the_bootstrap_of_single_votes_is_the_analytic_interval():
    verdicts = np.array([1] * 400 + [0] * 300 + [-1] * 300, dtype=float)
    low, high = cluster_bootstrap(verdicts, np.arange(1000))
    assert (high - low) / 2 == pytest.approx(Z * gsb_error(400, 300, 300), rel=0.08)


def test_votes_that_repeat_their_cluster_carry_no_more_than_one():
    once = np.array([1, -1, 0, 1, 1] * 20, dtype=float)
    tenfold = np.repeat(once, 10)
    alone = cluster_bootstrap(once, np.arange(100))
    assert cluster_bootstrap(tenfold, np.repeat(np.arange(100), 10)) == pytest.approx(alone)
    assert alone[1] - alone[0] > 2.5 * 2 * Z * gsb_error(600, 200, 200)


def test_which_clusters_are_resampled():
    raters, prompts = [f"u{i % 12}" for i in range(120)], [f"c{i // 4}" for i in range(120)]
    name, codes = larger_clusters(raters, prompts) or ("", np.zeros(0))
    assert name == "raters" and codes.max() == 11 and (codes[:13] == [*range(12), 0]).all()
    few = ["one", "two"] * 60  # two raters are no sample of raters
    assert (larger_clusters(few, prompts) or ("",))[0] == "prompts"
    assert larger_clusters(few, list(range(120))) is None


def test_the_wider_interval_is_given():
    prompts = [f"c{i // 4}" for i in range(120)]
    alike = statistics(60, 28, 32, prompts=prompts)  # every prompt gets one answer four times
    assert (
        alike.gsb_interval == "bootstrap over prompts"
        and alike.gsb_high - alike.gsb_low > 1.5 * 2 * Z * alike.gsb_se
    )
    verdicts = [1, 0, 0, -1] * 30  # every prompt gets the same mixture
    mixed = pair_statistics(verdicts, ["one", "two"] * 60, prompts)
    assert mixed.gsb_interval == "analytic" and mixed.gsb_high - mixed.gsb_low == pytest.approx(
        2 * Z * mixed.gsb_se
    )


def test_a_long_bootstrap_is_drawn_in_parts():
    verdicts = np.tile([1.0, 0.0, -1.0, 1.0], 1000)
    low, high = cluster_bootstrap(verdicts, np.arange(4000) // 2, num_resamples=3000)
    assert low < 0.25 < high


def test_no_votes_is_an_error():
    with pytest.raises(ValueError, match="no votes"):
        pair_statistics([], [], [])
