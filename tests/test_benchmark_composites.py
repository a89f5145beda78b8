"""Composite scores of Verse-Bench."""

import math

import pytest

from experiments.paper.published import BOUNDS, PARTS, WEIGHTS, composites, normalise


def test_composites_by_hand():
    values = dict(
        AS=0.6,
        ID=0.8,
        FD=1.5,
        KL=1.0,
        CS=0.4,
        CE=5.5,
        CU=5.5,
        PC=5.5,
        PQ=5.5,
        WER=0.2,
        **{"LSE-C": 8.0, "AV-A": 0.1},
    )
    found = {name: value or 0.0 for name, value in composites(values).items()}
    assert found["S_video"] == pytest.approx(0.7)
    assert found["S_audio"] == pytest.approx((0.5 + 0.75 + 0.4 + 0.5 + 0.5 + 0.5 + 0.5) / 7)
    assert found["S_other"] == pytest.approx((0.8 + 0.8) / 2)
    assert found["S_joint"] == pytest.approx(2 * 0.4 * 0.9 / 1.3)
    expected = (
        0.5 * found["S_joint"] + 0.2 * found["S_video"] + 0.2 * found["S_audio"] + 0.1 * found["S_other"]
    )
    assert found["Overall"] == pytest.approx(expected)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("metric", BOUNDS)
def test_composites_need_all_their_inputs(metric):
    full = {name: sum(bounds) / 2 for name, bounds in BOUNDS.items()}
    assert all(value == pytest.approx(0.5) for value in composites(full).values())
    for absent in (None, math.nan):
        found = composites({**full, metric: absent})
        assert found["Overall"] is None
        assert {name for name, value in found.items() if value is None} == {
            "Overall",
            *(name for name, some in PARTS.items() if metric in some),
        }


def test_composites_are_clipped():
    assert normalise("LSE-C", 11.0) == 1.0 and normalise("WER", 1.7) == 0.0 and normalise("PC", 1.0) == 1.0
    assert composites({name: bounds[1] for name, bounds in BOUNDS.items()})["Overall"] == 0.0
