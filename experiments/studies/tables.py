"""Statistics of finished runs as JSON: means over seeds, differences of arms, reasons of missing scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.scoring.statistics import (
    Clusters,
    Draws,
    DrawsOf,
    Interval,
    Table,
    difference_over_seeds,
    mean_over_seeds,
    paired,
    share_of_gain,
)

RunScores = Mapping[str, Any]  # scores of one run as written by `score_clips`
Tables = Mapping[str, Table]  # by metric


@dataclass(frozen=True)
class Comparison:
    """How arms are compared: bootstrap draws, their number, and each metric's direction. `said`: what each
    prompt asks for, where prompts of the same words and voices are drawn together; n counts clips."""

    draws: DrawsOf
    resamples: int
    higher_is_better: Mapping[str, bool]
    over_both: bool = False  # differences use only clips that both arms could score
    said: Clusters | None = None

    def means(self, tables: Tables) -> dict[str, Any]:
        """Mean over seeds with its interval, and each seed's own."""
        return {
            name: {
                **self._mean(table).as_json(),
                "seeds": [None if value != value else round(value, 6) for value in table.per_seed],
            }
            for name, table in tables.items()
        }

    def differences(self, ours: Tables, theirs: Tables) -> dict[str, Any]:
        """Ours minus theirs by metric, on the same draws, each with its classification."""
        found = {}
        for name in ours:
            one, other = paired(ours[name], theirs[name]) if self.over_both else (ours[name], theirs[name])
            n, (one, other) = one.scored, [self._together(table) for table in (one, other)]
            interval = replace(difference_over_seeds(one, other, self._draws(one)), n=n)
            found[name] = {**interval.as_json(), "verdict": interval.classify(self.higher_is_better[name])}
        return found

    def shares(self, part: Tables, whole: Tables, base: Tables) -> dict[str, Any]:
        """Share of the gain of `whole` over `base` that `part` has, by metric."""
        found = {}
        for name in part:
            tables = paired(part[name], whole[name], base[name])
            mine, best, start = (self._together(table) for table in tables)
            up, draws = self.higher_is_better[name], self._draws(mine)
            share = share_of_gain(mine, best, start, up, draws)
            found[name] = replace(share, n=tables[0].scored).as_json()
        return found

    def _mean(self, table: Table) -> Interval:
        drawn = self._together(table)
        return replace(mean_over_seeds(drawn, self._draws(drawn)), n=table.scored)

    def _together(self, table: Table) -> Table:
        return table if self.said is None else table.summed(self.said)

    def _draws(self, table: Table) -> Draws:
        seeds, clips = table.above.shape
        return self.draws(seeds, clips, self.resamples)


def check_prompts(scores: Sequence[RunScores], who: str) -> None:
    """Raises ValueError if the runs' clips answer different prompts."""
    if len({tuple(one["data_ids"]) for one in scores}) > 1:
        raise ValueError(
            f"{who} were scored on different prompts; remove the study's folder and run it again"
        )


def tables_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """Tables by metric, over seeds."""
    return {name: Table.of([one[name] for one in metrics]) for name in metrics[0]}


def metric_means(scores: RunScores) -> dict[str, float]:
    """`study/METRIC` -> sum of numerators over sum of denominators, where defined."""
    tables = {name: Table.of([pairs]) for name, pairs in scores["metrics"].items()}
    return {f"study/{name}": table.mean for name, table in tables.items() if table.below.any()}


def unscored(scores: Iterable[RunScores]) -> dict[str, dict[str, int]]:
    """Counts of unscored clips: scorer -> reason -> number."""
    counted: dict[str, Counter[str]] = {}
    for one in scores:
        for scorer, reasons in one["reasons"].items():
            counted.setdefault(scorer, Counter()).update(filter(None, reasons))
    return {scorer: dict(counts) for scorer, counts in counted.items() if counts}
