"""Everything the votes of a file say, as one JSON object: what `nava gsb stats` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.gsb.davidson import Davidson, count_outcomes, fit_davidson
from finetune.gsb.raters import (
    ONE_VOTE_PER_CASE,
    Agreement,
    RaterCheck,
    agreement,
    answer_counts,
    check_raters,
    first_votes,
    kept_votes,
)
from finetune.gsb.statistics import MIN_CLUSTERS, PairStatistics, holm, pair_statistics
from finetune.gsb.votes import AXES, Vote, VoteSet, differing_clips

MAIN_AXIS = "overall"
_LOPSIDED_P = 0.001


def summarise(
    votes: VoteSet, axis: str | None = None, models: Sequence[str] = (), keep_all_raters: bool = False
) -> dict[str, Any]:
    """Statistics per axis; `pairs` and `davidson` at the top are those of `axis` (overall when not given).

    Counts first votes of raters that pass the exclusion rule. With `axis`, other axes are left out, also of
    Holm's correction. Raises a one-line ValueError where nothing can be estimated: no vote names ours, none
    is left or on the axis, all are ties, a model of `models` was never compared with ours, or no chain of
    votes connects a model to ours.
    """
    ours = votes.ours
    if ours is None:
        compared = sorted({model for vote in votes.votes for model in vote.pair})
        raise ValueError(
            f"{votes.path}: ours_side is null in every vote; Good and Bad need a model that is ours, name "
            f"one by --ours: {', '.join(compared)}"
        )
    checks = check_raters(votes.votes)
    counted = first_votes(votes.votes) if keep_all_raters else kept_votes(votes.votes, checks)
    if not counted:
        raise ValueError(
            f"{votes.path}: no vote is left to count; all are attention checks or of dropped raters"
        )
    found = [name for name in AXES if any(vote.axis == name for vote in counted)]
    main = axis or MAIN_AXIS
    if main not in found:
        raise ValueError(
            f"{votes.path}: no vote on axis {main!r} to count; there are votes on {', '.join(found)} (--axis)"
        )
    by_axis = {name: [vote for vote in counted if vote.axis == name] for name in ([axis] if axis else found)}
    _check_comparisons(votes, by_axis[main], models)
    warnings = [*votes.warnings, *differing_clips(votes.votes)]
    pairs = _corrected({name: _pairs(chosen, ours) for name, chosen in by_axis.items()})
    fits = {name: _davidson(votes, name, chosen, warnings) for name, chosen in by_axis.items()}
    agreements = {name: agreement(answer_counts(chosen)) for name, chosen in by_axis.items()}
    selected = [vote for chosen in by_axis.values() for vote in chosen]
    warnings += _warnings(votes, selected, pairs, agreements[main], checks, keep_all_raters)
    parts = {name: _axis_json(pairs[name], fits[name], agreements[name]) for name in by_axis}
    return {
        **parts[main],
        "ours": ours,
        "axis": main,
        **({"axes": parts} if len(parts) > 1 else {}),
        "simulated": votes.num_simulated > 0,
        "votes": _vote_counts(votes, counted, selected),
        "raters": [check.as_json() for check in checks],
        "warnings": warnings,
    }


def _pairs(votes: Sequence[Vote], ours: str) -> dict[str, PairStatistics]:
    by_baseline: dict[str, list[Vote]] = {}
    for vote in votes:
        if vote.ours_side is not None:
            by_baseline.setdefault(
                vote.right_model if vote.ours_side == "left" else vote.left_model, []
            ).append(vote)
    return {
        baseline: pair_statistics(
            [v.preference(ours) for v in theirs], [v.user_id for v in theirs], [v.case_id for v in theirs]
        )
        for baseline, theirs in sorted(by_baseline.items())
    }


def _corrected(pairs: dict[str, dict[str, PairStatistics]]) -> dict[str, dict[str, PairStatistics]]:
    """With `sign_p_holm` over all pairs and axes."""
    places = [(axis, baseline) for axis, found in pairs.items() for baseline in found]
    adjusted = dict(
        zip(places, holm([pairs[axis][baseline].sign_p for axis, baseline in places]), strict=True)
    )
    return {
        axis: {
            baseline: replace(values, sign_p_holm=adjusted[axis, baseline])
            for baseline, values in found.items()
        }
        for axis, found in pairs.items()
    }


def _davidson(votes: VoteSet, axis: str, chosen: Sequence[Vote], warnings: list[str]) -> Davidson | None:
    """None for an axis without a decided vote, with a line in `warnings`."""
    if all(vote.choice == "tie" for vote in chosen):
        warnings.append(f"{axis}: every vote is a tie; no strengths")
        return None
    try:
        fit = fit_davidson(count_outcomes(chosen), votes.ours or "")
    except ValueError as error:
        raise ValueError(f"{votes.path}: {axis}: {error}") from None
    if fit.side_fixed:
        warnings.append(
            f"{axis}: models never changed sides, so the side effect cannot be told from strength; it is "
            "fixed at 0"
        )
    if fit.pseudo_wins:
        named = ", ".join(" and ".join(pair) for pair in fit.pseudo_wins)
        warnings.append(
            f"{axis}: 0.5 pseudo-wins each way between {named}, where one side has no win; strengths are "
            "shrunk"
        )
    return fit


def _check_comparisons(votes: VoteSet, chosen: Sequence[Vote], models: Sequence[str]) -> None:
    compared = {model for vote in chosen if vote.ours_side for model in vote.pair}
    if missing := [model for model in models if model != votes.ours and model not in compared]:
        raise ValueError(
            f"{votes.path}: {missing[0]!r} was never compared with {votes.ours!r}; collect votes or leave "
            "it out"
        )
    if all(vote.choice == "tie" for vote in chosen):
        raise ValueError(
            f"{votes.path}: all {len(chosen)} votes on axis {chosen[0].axis!r} are ties; there is no "
            "preference to measure"
        )


def _warnings(
    votes: VoteSet,
    selected: Sequence[Vote],
    pairs: dict[str, dict[str, PairStatistics]],
    agreed: Agreement | None,
    checks: Sequence[RaterCheck],
    keep_all: bool,
) -> list[str]:
    found = []
    if 0 < votes.num_simulated < len(votes.votes):
        found.append(
            f"{votes.num_simulated} simulated votes are mixed with {len(votes.votes) - votes.num_simulated} "
            "of people"
        )
    raters = len({vote.user_id for vote in selected})
    if raters == 1:
        found.append("one rater: intervals are about prompts only, they say nothing about other people")
    elif raters < MIN_CLUSTERS:
        found.append(
            f"{raters} raters, fewer than {MIN_CLUSTERS}: intervals do not cover the choice of raters"
        )
    if agreed is None and raters > 1:
        found.append(ONE_VOTE_PER_CASE)
    for check in checks:
        if check.dropped:
            found.append(
                f"rater {check.user_id} {'would be dropped' if keep_all else 'is dropped'}: {check.dropped}"
            )
        elif check.side_p < _LOPSIDED_P:
            found.append(
                f"rater {check.user_id} chose left in {check.left_share:.0%} of decided votes (p "
                f"{check.side_p:.1g})"
            )
    for axis, compared in pairs.items():
        found += [
            f"{axis}: all votes on {baseline} are ties"
            for baseline, values in compared.items()
            if not values.good + values.bad
        ]
    compared = {model for baselines in pairs.values() for model in baselines}
    others = sorted({model for vote in selected for model in vote.pair} - compared - {votes.ours or ""})
    return found + [
        f"{model} was never compared with {votes.ours} itself; it has a strength but no GSB"
        for model in others
    ]


def _vote_counts(votes: VoteSet, counted: Sequence[Vote], selected: Sequence[Vote]) -> dict[str, int]:
    attention = sum(vote.attention for vote in votes.votes)
    first = len(first_votes(votes.votes))
    return {
        "read": len(votes.votes),
        "counted": len(selected),
        "attention": attention,
        "repeats": len(votes.votes) - attention - first,
        "of_dropped_raters": first - len(counted),
        "simulated": votes.num_simulated,
    }


def _axis_json(
    pairs: dict[str, PairStatistics], fit: Davidson | None, agreed: Agreement | None
) -> dict[str, Any]:
    return {
        "pairs": {baseline: values.as_json() for baseline, values in pairs.items()},
        "davidson": fit.as_json() if fit else None,
        "agreement": agreed.as_json() if agreed else None,
    }
