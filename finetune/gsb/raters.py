"""Rater quality: agreement, self-consistency, attention checks, side bias, and the exclusion rule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from finetune.gsb.votes import Vote

ONE_VOTE_PER_CASE = "one vote per case: agreement cannot be computed"


@dataclass(frozen=True)
class DropRule:
    """Fixed before any vote is seen: excludes raters who fail attention checks or contradict themselves."""

    min_attention_checks: int = 3
    min_attention_passed: float = 0.6  # share
    min_repeats: int = 8  # pairs shown again; several axes of one pair are not independent
    min_self_consistency: float = 0.4  # share of equal votes; chance gives a third


@dataclass(frozen=True)
class Agreement:
    """Chance-corrected agreement in three nominal classes, items with >= 2 raters; NaN if undefined."""

    krippendorff_alpha: float
    fleiss_kappa: float
    gwet_ac1: float
    observed: float  # share of agreeing pairs of raters
    items: int  # with at least two raters
    raters: int

    def as_json(self) -> dict[str, Any]:
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class RaterCheck:
    """Statistics of one rater. `left_share`: of decided votes; `side_p`: its exact test against 1/2."""

    user_id: str
    votes: int
    ties: int
    attention_checks: int
    attention_passed: int
    swapped_repeats: int
    same_answer: int
    left_share: float
    side_p: float
    dropped: str  # why, or ""

    def as_json(self) -> dict[str, Any]:
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def agreement(counts: np.ndarray) -> Agreement | None:
    """From vote counts [items, classes]; None where no item has two votes.

    Varying numbers of raters are allowed: Krippendorff's coincidences; Fleiss and Gwet as generalised in
    Gwet's Handbook of Inter-Rater Reliability (chance from the mean share of each class over all items).
    Equal to Fleiss' own for equal numbers.
    """
    counts = np.asarray(counts, dtype=np.float64)
    counts = counts[counts.sum(axis=1) > 0]
    raters = counts.sum(axis=1)
    several = raters > 1
    if not several.any():
        return None
    shared, size = counts[several], raters[several]
    agreeing = (shared * (shared - 1)).sum(axis=1)
    observed = float((agreeing / (size * (size - 1))).mean())
    classes = (counts / raters[:, None]).mean(axis=0)
    by_fleiss = float((classes**2).sum())
    by_gwet = float((classes * (1 - classes)).sum() / (counts.shape[1] - 1))
    total = size.sum()
    margins = shared.sum(axis=0)
    disagreeing = 1 - float((agreeing / (size - 1)).sum()) / total
    expected = 1 - float((margins * (margins - 1)).sum()) / (total * (total - 1))
    return Agreement(
        krippendorff_alpha=1 - disagreeing / expected if expected > 0 else math.nan,
        fleiss_kappa=_over_chance(observed, by_fleiss),
        gwet_ac1=_over_chance(observed, by_gwet),
        observed=observed,
        items=int(several.sum()),
        raters=int(raters.max()),
    )


def _over_chance(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 - 1e-12 else math.nan


def answer_counts(votes: Iterable[Vote]) -> np.ndarray:
    """[items, 3]: counts of first model, Same, second model; an item is (case, pair, axis)."""
    items: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for vote in votes:
        items[vote.case_id, vote.pair, vote.axis][1 - vote.preference(vote.pair[0])] += 1
    return np.array(list(items.values())).reshape(-1, 3)


def first_votes(votes: Iterable[Vote]) -> list[Vote]:
    """The counted votes: without attention checks, the first of repeats."""
    first: dict[tuple[Any, ...], Vote] = {}
    for vote in votes:
        if not vote.attention and ((known := first.get(vote.question)) is None or vote.repeat < known.repeat):
            first[vote.question] = vote
    return list(first.values())


def check_raters(votes: Sequence[Vote], rule: DropRule = DropRule()) -> list[RaterCheck]:
    """One entry per rater, by name.

    Only a vote for the original passes an attention check. Self-consistency compares repeats with swapped
    sides to the rater's first vote. Side bias is only reported: sides may be unbalanced.
    """
    by_rater: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_rater[vote.user_id].append(vote)
    return [_check(user, theirs, rule) for user, theirs in sorted(by_rater.items())]


def _check(user: str, votes: Sequence[Vote], rule: DropRule) -> RaterCheck:
    counted = first_votes(votes)
    attention = [vote.choice == vote.ours_side for vote in votes if vote.attention]
    first = {vote.question: vote for vote in counted}
    again = [
        vote
        for vote in votes
        if not vote.attention
        and vote is not first[vote.question]
        and vote.left_model != first[vote.question].left_model
    ]
    repeats = [
        vote.preference(vote.pair[0]) == first[vote.question].preference(vote.pair[0]) for vote in again
    ]
    showings = len({(vote.case_id, vote.pair) for vote in again})
    decided = [vote.choice == "left" for vote in counted if vote.choice != "tie"]
    return RaterCheck(
        user_id=user,
        votes=len(counted),
        ties=len(counted) - len(decided),
        attention_checks=len(attention),
        attention_passed=sum(attention),
        swapped_repeats=len(repeats),
        same_answer=sum(repeats),
        left_share=sum(decided) / len(decided) if decided else math.nan,
        side_p=_fair_p(sum(decided), len(decided)) if decided else math.nan,
        dropped=_reason(attention, repeats, showings, rule),
    )


@cache  # thousands of raters share few counts
def _fair_p(lefts: int, decided: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(lefts, decided).pvalue)


def _reason(attention: Sequence[bool], repeats: Sequence[bool], showings: int, rule: DropRule) -> str:
    if len(attention) >= rule.min_attention_checks and sum(attention) < rule.min_attention_passed * len(
        attention
    ):
        return f"passed {sum(attention)} of {len(attention)} attention checks"
    if showings >= rule.min_repeats and sum(repeats) < rule.min_self_consistency * len(repeats):
        return f"gave the same answer in {sum(repeats)} of {len(repeats)} swapped repeats"
    return ""


def kept_votes(votes: Sequence[Vote], checks: Sequence[RaterCheck]) -> list[Vote]:
    """The counted votes (`first_votes`) of raters who were not dropped."""
    dropped = {check.user_id for check in checks if check.dropped}
    return [vote for vote in first_votes(votes) if vote.user_id not in dropped]
