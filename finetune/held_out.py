"""Held-out scores beside those of the first scoring, prompt by prompt, for `best`, patience and alarms.

Paired, because means over whatever could be scored rise when the worst clips cannot be scored any longer.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.executor import RoundScores
from finetune.judges import Change, coverage_changes, judge_changes, listed
from finetune.progress import AlignProgress
from finetune.recipe import RubricConfig

PromptValues = Sequence[float | None]  # a reward's, one per prompt, None where it could not score the clip


@dataclass(frozen=True)
class HeldOutChange:
    """A scoring beside the first one."""

    total: float  # weighted sum of the rewards' changes, in deviations over the prompts at the first scoring
    # reward -> share of the prompts that it scored at first and cannot score now; 1 if it never scored any
    lost: Mapping[str, float]
    changes: Mapping[str, Change]  # of judges
    coverage: Mapping[str, Change]  # of the share of prompts that a judge could score


def compare(progress: AlignProgress, scores: RoundScores, rubric: RubricConfig) -> HeldOutChange:
    """The scoring beside the first one, which `progress` keeps from here on.

    Prompts are paired by id, so neither the order of ranks nor a reward that began to score later matters.
    Where none of the prompts is one of the first scoring, this one takes its place, and `best` begins anew.
    Raises ValueError for an infinite value and where a reward scored no prompt at the run's first scoring.
    """
    routes, ids = rubric.routes(), scores.groups.tolist()
    rewards = listed({name: scores.values[name] for name in routes})
    judges = listed(scores.judges)
    if not progress.scored:
        _check_scored(rewards, scores.reasons)
    _take_prompts(progress, ids)
    place = {prompt: index for index, prompt in enumerate(ids)}
    both = [prompt in place for prompt in progress.prompts]

    def ordered(values: Mapping[str, PromptValues]) -> dict[str, list[float | None]]:
        prompts = progress.prompts
        return {
            name: [some[place[prompt]] if prompt in place else None for prompt in prompts]
            for name, some in values.items()
        }

    now, judged = ordered(rewards), ordered(judges)
    for name, values in judged.items():
        progress.judged.setdefault(name, values)
    total, lost = 0.0, {}
    for name, route in routes.items():
        if name in progress.baseline:
            moved = change_of_means(scores.values[name], *progress.baseline[name])
        else:
            moved, lost[name] = _moved(progress, name, now[name], both, rubric.advantage.min_spread)
        total += route.weight * moved
    first = {name: _kept(values, both) for name, values in progress.judged.items()}
    judged = {name: _kept(values, both) for name, values in judged.items()}
    return HeldOutChange(total, lost, judge_changes(first, judged), coverage_changes(first, judged))


def paired_change(first: PromptValues, now: PromptValues) -> tuple[float, float]:
    """(mean change over the prompts that were scored at first, share of them that are not scored now).

    A prompt that lost its score counts as the worst value that any of them had, then or now: it never raises
    the mean. One that was not scored at first takes no part. (0, 0) where none was.
    """
    pairs = [(before, after) for before, after in zip(first, now, strict=True) if before is not None]
    if not pairs:
        return 0.0, 0.0
    worst = min(value for pair in pairs for value in pair if value is not None)
    moved = [(worst if after is None else after) - before for before, after in pairs]
    return statistics.fmean(moved), sum(after is None for _, after in pairs) / len(pairs)


def unit(first: PromptValues, min_spread: float) -> float:
    """What a reward's changes are divided by: the deviation over the prompts at the first scoring.

    Where they are alike (within min_spread, as the only prompt is), nothing is known of the reward's scale:
    the size of their mean, at least 1, so that a small change stays small.
    """
    known = [value for value in first if value is not None]
    if len(known) > 1 and max(known) - min(known) > min_spread:
        return statistics.stdev(known)
    return max(1.0, abs(statistics.fmean(known)))


def change_of_means(values: Tensor, before: float, spread: float) -> float:
    """Change of a reward [N], in deviations, since a first scoring that an earlier version kept as `before`
    and `spread`."""
    known = values[~values.isnan()]
    return (float(known.mean()) - before) / max(spread, 1e-6) if len(known) else 0.0


def _moved(
    progress: AlignProgress, name: str, now: PromptValues, both: Sequence[bool], min_spread: float
) -> tuple[float, float]:
    """(change of a reward in deviations, share lost); keeps its first values. 0 and 1 where it has none."""
    if name not in progress.rewarded:
        if all(value is None for value in now):
            return 0.0, 1.0
        progress.rewarded[name] = list(now)
    first = progress.rewarded[name]
    change, lost = paired_change(_kept(first, both), _kept(now, both))
    return change / unit(first, min_spread), lost


def _take_prompts(progress: AlignProgress, ids: list[int]) -> None:
    """Prompts of the first scoring, if they are not known or none of them is asked any longer."""
    # a mean that is NaN compares with nothing: such a reward begins where it scores
    kept = {name: found for name, found in progress.baseline.items() if math.isfinite(found[0])}
    if progress.prompts and not set(progress.prompts) & set(ids):
        kept, progress.rewarded, progress.judged = {}, {}, {}
        progress.prompts, progress.best_total = [], None
    progress.baseline = kept
    if not progress.prompts:
        # judges of an earlier version are by position, in the order of as many ranks as then
        progress.judged = {
            name: values for name, values in progress.judged.items() if len(values) == len(ids)
        }
        progress.prompts = ids


def _check_scored(rewards: Mapping[str, PromptValues], reasons: Mapping[str, str]) -> None:
    for name, values in rewards.items():
        if values and all(value is None for value in values):
            raise ValueError(
                f"held-out prompts: reward {name} could score none of {len(values)} clips "
                f"({reasons.get(name, 'no reason given')}), so no round can be compared by it; give prompts "
                "whose clips it can score, leave it out of the rubric, or set align.stop.prompts=0"
            )


def _kept(values: PromptValues, which: Sequence[bool]) -> list[float | None]:
    return [value for value, keep in zip(values, which, strict=True) if keep]
