"""Two scored sets compared pairwise: the same clips, or the same prompts, by the same rewards."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from experiments.scoring.conditions import TOTAL
from experiments.scoring.rows import ScoredRow, absent_line, number, score_in
from experiments.scoring.statistics import TOO_FEW, Interval, Terms, bootstrap_difference
from pretrain.jsonl import FieldError, scan
from rewards.catalog import CATALOG, is_plugin, metric, metrics_of, ratio_parts
from rewards.types import split_part

By = Literal["name", "prompt"]
PROMPT_WIDTH = 60  # characters of a prompt in a message
COUNTS = ("pairs", "prompts", "only_a", "only_b", "without_prompt")
Values = tuple[float, float]  # numerator and denominator of a clip's value; NaN = not scored


@dataclass(frozen=True)
class ScoredSet:
    """A file of `nava score`; a later row of a clip counts, not an earlier one. `absent`: rows whose clip was
    no longer there when the file was last scored into, which are not among `rows`."""

    path: Path
    rows: Mapping[str, ScoredRow]  # by clip
    absent: int = 0

    @property
    def called(self) -> Mapping[str, str]:
        """Reward as asked for -> name of its scores, where they differ."""
        return {entry: own for row in self.rows.values() for entry, own in row.get("called", {}).items()}

    def settings(self, reward: str) -> set[str]:
        """Ids of the options that a reward was scored with; of all rewards where rows have no others."""
        return {row.get("settings", {}).get(reward, row.get("config", "")) for row in self.rows.values()}


@dataclass(frozen=True)
class Compared:
    """One metric of both sets over the same pairs. `difference` = B - A, its n the pairs, `clusters` their
    prompts and `unscored` the pairs in which a side has no score. `higher_is_better`: None = unknown, or
    neither side is better."""

    metric: str
    mean_a: float
    mean_b: float
    difference: Interval
    higher_is_better: bool | None

    @property
    def prompts(self) -> int:
        """Prompts that the pairs answer; a clip without a prompt counts as one."""
        return self.difference.clusters or 0

    @property
    def verdict(self) -> str:
        """better or worse of B, not told apart, or why neither can be said; "" without a direction."""
        if self.higher_is_better is None:
            return "" if not math.isnan(self.difference.mean) else "not measured"
        found = self.difference.classify(self.higher_is_better)
        if found == TOO_FEW:
            return "one prompt" if self.prompts == 1 else "too few prompts"
        return found

    def as_json(self) -> dict[str, Any]:
        found = self.difference.as_json()
        return {
            "metric": self.metric,
            "mean_a": _json(self.mean_a),
            "mean_b": _json(self.mean_b),
            "difference": found["mean"],
            "low": found["low"],
            "high": found["high"],
            "pairs": self.difference.n,
            "prompts": self.prompts,
            "unscored_pairs": self.difference.unscored,
            "higher_is_better": self.higher_is_better,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class SetComparison:
    """`prompts` that the `pairs` answer; `only_a`, `only_b`: clips (or prompts) without a partner;
    `without_prompt`: clips that --by prompt cannot pair; `notes`: what is not compared, and why."""

    metrics: Sequence[Compared]
    pairs: int
    prompts: int
    only_a: int
    only_b: int
    without_prompt: int
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        counts = {key: getattr(self, key) for key in COUNTS}
        return {**counts, "metrics": [one.as_json() for one in self.metrics], "notes": list(self.notes)}


def read_set(path: Path) -> ScoredSet:
    """Raises FileNotFoundError, or ValueError naming file and line for what is no row of `nava score`."""
    rows: dict[str, ScoredRow] = {}
    absent: set[str] = set()
    for line, row in scan(path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        if not isinstance(row.get("clip"), str) or not isinstance(row.get("scores"), dict):
            raise ValueError(
                FieldError(line, "clip", "not a row of scores; give what `nava score --out` wrote").at(path)
            )
        rows[row["clip"]] = row
        (absent.add if row.get("absent") else absent.discard)(row["clip"])
    return ScoredSet(path, {name: row for name, row in rows.items() if name not in absent}, len(absent))


def compare_sets(
    a: ScoredSet, b: ScoredSet, by: By = "name", other_settings: bool = False, other_prompts: bool = False
) -> SetComparison:
    """Every reward, part and ratio that both have, and the total where it is the raw values'.

    `by` name: clips of the same name are a pair; clips of one prompt are drawn together. `by` prompt: all
    clips of a prompt are one value. Raises ValueError where nothing can be paired, no reward is in both, a
    reward was scored with other options, which `other_settings` allows, or a pair answers two prompts, which
    `other_prompts` allows.
    """
    pairs, counts = _pairs(a, b, by)
    differing = _check_prompts(pairs, a, b, other_prompts)
    names, notes = _shared_rewards(a, b, other_settings)
    notes += differing + [_absent_line(found) for found in (a, b) if found.absent]
    metrics = []
    for name, terms in _terms(names, pairs).items():
        metrics.append(_compared(name, terms, by, a, b))
    why = _total_apart(a, b)
    if why:
        notes.append(f"total: {why}")
    elif any(TOTAL in row for row in a.rows.values()) and any(TOTAL in row for row in b.rows.values()):
        columns = [[[_total(row) for row in side] for side in pair] for pair in pairs.values()]
        metrics.append(_compared(TOTAL, list(zip(pairs, columns, strict=True)), by, a, b))
    return SetComparison(metrics, len(pairs), len({cluster for cluster, _ in pairs}), *counts, notes)


Pairs = Mapping[tuple[str, str], tuple[list[ScoredRow], list[ScoredRow]]]  # (cluster, key) -> rows of A and B
PairTerms = Sequence[tuple[tuple[str, str], Sequence[Sequence[Values]]]]


def _pairs(a: ScoredSet, b: ScoredSet, by: By) -> tuple[Pairs, tuple[int, int, int]]:
    """Pairs in an order that does not depend on which side is A."""
    if by == "name":
        shared = sorted(a.rows.keys() & b.rows.keys())
        if not shared:
            raise ValueError(
                f"{a.path} and {b.path}: no clip is in both{_left_out(a, b)}; give sets with the same names, "
                "or pair them by their prompts (--by prompt)"
            )
        clusters = _clusters(shared, a, b)
        pairs = {
            (cluster, name): ([a.rows[name]], [b.rows[name]])
            for cluster, name in zip(clusters, shared, strict=True)
        }
        return pairs, (len(a.rows) - len(shared), len(b.rows) - len(shared), 0)
    groups = [defaultdict(list), defaultdict(list)]
    nameless = 0
    for side, found in zip(groups, (a, b), strict=True):
        for name in sorted(found.rows):
            group = _group(found.rows[name])
            nameless += not group
            if group:
                side[group].append(found.rows[name])
    shared = sorted(groups[0].keys() & groups[1].keys())
    if not shared:
        raise ValueError(
            f"{a.path} and {b.path}: no prompt is in both{_left_out(a, b)}; give two scored sets of the same "
            "prompts"
        )
    pairs = {(group, group): (groups[0][group], groups[1][group]) for group in shared}
    return pairs, (len(groups[0]) - len(shared), len(groups[1]) - len(shared), nameless)


def _group(row: ScoredRow) -> str:
    return row.get("group") or row.get("prompt") or ""


def _clusters(names: Sequence[str], a: ScoredSet, b: ScoredSet) -> list[str]:
    """What each pair is drawn with: its prompt, or the clip alone where it has none. Where the sides group
    them otherwise, as those that know no prompts do, the one with fewer groups decides."""
    sides = [[_group(found.rows[name]) or name for name in names] for found in (a, b)]
    return min(sides, key=lambda groups: (len(set(groups)), groups))


def _check_prompts(pairs: Pairs, a: ScoredSet, b: ScoredSet, other_prompts: bool) -> list[str]:
    """Notes. Raises ValueError where the clips of a pair answer two prompts; one that is "" is not known."""
    asked = {
        name: [{row["prompt"]: None for row in side if row.get("prompt")} for side in sides]
        for (_, name), sides in pairs.items()
    }
    apart = [name for name, (ours, theirs) in asked.items() if ours and theirs and not ours.keys() & theirs]
    if not apart:
        return []
    if other_prompts:
        return [f"pairs whose two prompts differ: {len(apart)} of {len(pairs)}"]
    first, second = (repr(next(iter(side))[:PROMPT_WIDTH]) for side in asked[apart[0]])
    raise ValueError(
        f"{a.path} and {b.path}: {apart[0]} answers {first} in one and {second} in the other, "
        f"{len(apart)} of {len(pairs)} pairs differ so; give sets of the same prompts, pair them by "
        "their prompts (--by prompt), or allow it, as of rewritten prompts (--other-prompts)"
    )


def _absent_line(found: ScoredSet) -> str:
    return f"{found.path}: {absent_line(found.absent)}"


def _left_out(a: ScoredSet, b: ScoredSet) -> str:
    lines = [_absent_line(found) for found in (a, b) if found.absent]
    return f" ({'; '.join(lines)})" if lines else ""


def _shared_rewards(a: ScoredSet, b: ScoredSet, other_settings: bool) -> tuple[list[str], list[str]]:
    """Rewards that both were scored with, and notes on the others."""
    names = [
        list(dict.fromkeys(name for row in found.rows.values() for name in row["scores"])) for found in (a, b)
    ]
    shared, notes = [name for name in names[0] if name in names[1]], []
    for found, mine, others in ((a, names[0], names[1]), (b, names[1], names[0])):
        if only := [name for name in mine if name not in others]:
            notes.append(f"only in {found.path}: {', '.join(only)}")
    if not shared:
        raise ValueError(
            f"{a.path} and {b.path}: no reward is in both ({'; '.join(notes)}); score both with it"
        )
    differing = [name for name in shared if a.settings(name) != b.settings(name)]
    if differing and not other_settings:
        raise ValueError(
            f"{a.path} and {b.path}: {', '.join(differing)} scored with other settings, or with rewards of "
            "which an older file does not say the settings; score both alike, or allow it (--other-settings)"
        )
    if differing:
        notes.append(f"scored with other settings: {', '.join(differing)}")
    return shared, notes


def _terms(names: Sequence[str], pairs: Pairs) -> dict[str, PairTerms]:
    """Metric -> values of each pair: rewards, then their parts, then the ratios of the catalog."""
    ratios = ratio_parts()
    found: dict[str, PairTerms] = {}
    for name in names:
        scores = {
            key: [[score_in(row, name) for row in side] for side in sides] for key, sides in pairs.items()
        }
        parts = dict.fromkeys(
            part for sides in scores.values() for side in sides for score in side for part in score.parts
        )
        found[name] = [
            (key, [[(score.value, 1.0) for score in side] for side in sides]) for key, sides in scores.items()
        ]
        for part in parts:
            found[f"{name}.{part}"] = [
                (key, [[(score.parts.get(part, math.nan), 1.0) for score in side] for side in sides])
                for key, sides in scores.items()
            ]
        for above, below in ratios:
            if above in parts and below in parts:
                found[f"{name} ({above}/{below})"] = [
                    (key, [[_ratio(score.parts, above, below) for score in side] for side in sides])
                    for key, sides in scores.items()
                ]
    return found


def _ratio(parts: Mapping[str, float], above: str, below: str) -> Values:
    return parts.get(above, math.nan), parts.get(below, math.nan)


def _compared(name: str, terms: PairTerms, by: By, a: ScoredSet, b: ScoredSet) -> Compared:
    """Means over the pairs that both sides have a value of, and the interval of their difference."""
    whole = "(" in name  # a ratio of sums counts clips by their length, a mean counts each prompt once
    clusters: dict[str, list[list[float]]] = defaultdict(lambda: [[0.0, 0.0], [0.0, 0.0]])
    num_pairs = unscored = 0
    for (cluster, _), sides in terms:
        known = [[value for value in side if not any(map(math.isnan, value))] for side in sides]
        if not all(known):
            unscored += 1
            continue
        num_pairs += 1
        for sums, values in zip(clusters[cluster], known, strict=True):
            scale = 1.0 if whole or by == "name" else 1.0 / len(values)
            sums[0] += scale * sum(above for above, _ in values)
            sums[1] += scale * sum(below for _, below in values)
    columns = [
        ([sums[side][0] for sums in clusters.values()], [sums[side][1] for sums in clusters.values()])
        for side in (0, 1)
    ]
    ours, theirs = columns
    found = bootstrap_difference(theirs, ours)
    interval = replace(found, n=num_pairs, unscored=unscored)
    called = {**a.called, **b.called}
    higher = direction(name.partition(" (")[0], called) if name != TOTAL else True
    return Compared(name, _mean(ours), _mean(theirs), interval, higher)


def direction(name: str, called: Mapping[str, str]) -> bool | None:
    """True where higher is better, by the catalog or the class of a reward of one's own; None = unknown.

    `called`: reward as asked for -> name of its scores.
    """
    reward, part = split_part(name, {*CATALOG, *called.values()})
    entry = next((entry for entry, own in called.items() if own == reward), reward)
    if part:
        listed = (
            found for found in metrics_of(CATALOG).values() if (found.scorer, found.part) == (entry, part)
        )
        found = next(listed, None)
    else:
        found = metric(entry) if entry in CATALOG or _importable(entry) else None
    return not found.lower_is_better if found and found.has_direction else None


def _importable(name: str) -> bool:
    if not is_plugin(name):
        return False
    try:
        metric(name)
    except ValueError:
        return False
    return True


def _mean(terms: Terms) -> float:
    above, below = sum(terms[0]), sum(terms[1])
    return above / below if below else math.nan


def _total(row: ScoredRow) -> Values:
    return number(row.get(TOTAL, {}).get("value")), 1.0


def _total_apart(a: ScoredSet, b: ScoredSet) -> str:
    """Why the totals of the two cannot be compared; "" where they can, or one has none."""
    totals = [[row[TOTAL] for row in found.rows.values() if TOTAL in row] for found in (a, b)]
    if not all(totals):
        return ""
    if any(total.get("relative", True) for side in totals for total in side):
        return (
            "about the other clips of its own file (normalise), so not comparable; score with normalise: none"
        )
    rubrics = Counter(total.get("rubric", "") for side in totals for total in side)
    return "by two different rubrics, so not comparable" if len(rubrics) > 1 else ""


def _json(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
