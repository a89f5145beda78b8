"""Metadata of a reported number: its source in the scores, its direction and its display name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricRole = Literal["judge", "reward", "watched"]


@dataclass(frozen=True)
class Metric:
    """One column of the reports, read from the rows of scores.

    A clip's value is the scorer's value, or `part` of its score. A set's value is the mean over clips or,
    with `numerator` and `denominator` (two parts), the ratio of their sums (word error rate: errors, words).
    """

    name: str  # as in reports: sync_c_mini
    title: str  # for people
    scorer: str  # its name in the rows of scores: sync_judge
    part: str = ""  # "" = the score's value
    numerator: str = ""
    denominator: str = ""
    lower_is_better: bool = False
    has_direction: bool = True  # False: neither side is better (a lag); reported, not compared
    unit: str = ""
    role: MetricRole = "watched"  # judge: never rewarded; reward: what alignment optimises by default
    gap_closed: bool = False  # whether the share of the gap to the codec's round trip is reported
