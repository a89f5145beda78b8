"""Select a representative, informative subset of prompts or preference pairs for alignment.

Facility location as in pretrain.data.curate, with worth_ij = similarity_ij * (1 - gain_weight (1 - rank of
gain_j)): an item without gain represents others only in part. Ranks, because gains have no common scale.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.data.curate import choose, facility_location
from pretrain.data.features import similarities

RANDOM_SUBSETS = 20


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """How many to keep and how much their gain counts. Raises ValueError for impossible numbers."""

    share: float = 1 / 3  # of all
    count: int = 0  # instead of the share; 0 = by share
    gain_weight: float = 0.6  # 0 = diversity alone; 1 = the item with the least gain has no worth
    seed: int = 0  # of the random subsets that the report compares with

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"curation.share: expected a share in (0, 1], got {self.share}; a number of prompts is "
                "curation.count"
            )
        if self.count < 0:
            raise ValueError(f"curation.count: at least 1, or 0 to go by share, got {self.count}")
        if not 0 <= self.gain_weight <= 1:
            raise ValueError(f"curation.gain_weight: expected a number in [0, 1], got {self.gain_weight}")

    def budget(self, count: int) -> int:
        """How many of `count` are kept."""
        return self.count or max(1, round(self.share * count))


@dataclass(frozen=True)
class Choice:
    """`indices` are sorted. `report` compares the selection with random subsets of its size and with all:
    coverage: mean over all of the greatest similarity to a chosen one, 0..1; mean_gain; gain_share: of the
    sum of all gains; objective: what was maximised, of its value for all. `random` has their means and, as
    `objective_best`, the best subset's.
    """

    indices: list[int]
    report: dict[str, Any]


def curate(features: np.ndarray | Sequence[np.ndarray], gains: np.ndarray, config: CurationConfig) -> Choice:
    """Select from N candidates by features [N, D] and gains [N] >= 0, higher is better.

    Several groups of features have equal weight. A candidate with NaN gain (not scored) is never selected,
    but still counts in the coverage. The result does not depend on the input order, up to equal entries.
    Raises ValueError for unlike lengths, features that are not finite, negative gains, and fewer candidates
    than the budget.
    """
    groups = [
        np.asarray(group, np.float64)
        for group in ([features] if isinstance(features, np.ndarray) else features)
    ]
    values = np.asarray(gains, np.float64)
    _check(groups, values)
    order = _canonical(groups, values)
    groups, values = [group[order] for group in groups], values[order]
    candidates = np.flatnonzero(~np.isnan(values))
    budget = config.budget(len(values))
    if budget > len(candidates):
        unscored = len(values) - len(candidates)
        raise ValueError(
            f"curation: {budget} asked for, {len(candidates)} of {len(values)} can be chosen ({unscored} "
            "without gain); lower the budget"
        )
    similarity = similarities(groups)
    worth = similarity[:, candidates] * (1.0 - config.gain_weight * (1.0 - _ranks(values[candidates])))[None]
    chosen = choose(worth, budget)
    report = _report(similarity[:, candidates], worth, values[candidates], chosen, config.seed)
    counts = {"all": len(values), "without_gain": len(values) - len(candidates), "chosen": len(chosen)}
    return Choice(sorted(int(order[candidates[index]]) for index in chosen), {**counts, **report})


def random_choice(count: int, config: CurationConfig) -> list[int]:
    """A random selection of the same size, the control for a curated run.

    Raises ValueError for a budget beyond `count`.
    """
    budget = config.budget(count)
    if budget > count:
        raise ValueError(f"curation: {budget} asked for, there are {count}; lower the budget")
    return sorted(np.random.default_rng(config.seed).choice(count, budget, replace=False).tolist())


def contrast(rewards: np.ndarray, groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """Gain of a prompt: standard deviation of its clips' rewards [N]; NaN for fewer than two scored clips.

    Without contrast a group has no gradient in any objective.
    """
    return {
        group: float(np.std(found)) if len(found) > 1 else float("nan")
        for group, found in _scored(rewards, groups).items()
    }


def shortfall(rewards: np.ndarray, groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """Gain of a prompt: distance of its mean reward below the best prompt's, in deviations of all [N].

    A model that already does well has little to gain. NaN for a prompt none of whose clips is scored.
    """
    values, scored = np.asarray(rewards, np.float64), _scored(rewards, groups)
    means = {group: float(np.mean(found)) if found else float("nan") for group, found in scored.items()}
    known = values[~np.isnan(values)]
    if not len(known):
        return means
    best, spread = np.nanmax(list(means.values())), known.std()
    return {group: float((best - mean) / spread) if spread else 0.0 * mean for group, mean in means.items()}


def vote_margin(counts: np.ndarray) -> np.ndarray:
    """Gain of a pair from its votes [N, 3] (first, Same, second): |first - second| / votes, or NaN."""
    votes = np.asarray(counts, np.float64)
    total = votes.sum(axis=1)
    return np.abs(votes[:, 0] - votes[:, 2]) / np.where(total > 0, total, np.nan)


def text_features(texts: Sequence[str]) -> np.ndarray:
    """Word counts of texts, [N, words] of unit length. Raises ValueError for a text without words."""
    counted = [text.casefold().split() for text in texts]
    if empty := [index for index, words in enumerate(counted) if not words]:
        raise ValueError(f"curation: text {empty[0]} is empty")
    place = {word: index for index, word in enumerate(sorted({word for words in counted for word in words}))}
    features = np.zeros((len(texts), len(place)))
    for row, words in zip(features, counted, strict=True):
        for word in words:
            row[place[word]] += 1
    return features / np.linalg.norm(features, axis=1, keepdims=True) if len(texts) else features


def _scored(rewards: np.ndarray, groups: Sequence[Hashable]) -> dict[Hashable, list[float]]:
    """Group -> its rewards that are not NaN."""
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(np.asarray(rewards, np.float64).tolist(), groups, strict=True):
        found = members.setdefault(group, [])
        if not np.isnan(value):
            found.append(value)
    return members


def _check(groups: Sequence[np.ndarray], gains: np.ndarray) -> None:
    if gains.ndim != 1 or not len(gains):
        raise ValueError(
            f"curation: gains must be one number for each of at least one, got shape {list(gains.shape)}"
        )
    for group in groups:
        if group.ndim != 2 or len(group) != len(gains):
            raise ValueError(
                f"curation: features must be [{len(gains)}, D] as there are {len(gains)} gains, got "
                f"{list(group.shape)}"
            )
        if not np.isfinite(group).all():
            row = int(np.flatnonzero(~np.isfinite(group).all(axis=1))[0])
            raise ValueError(f"curation: features of entry {row} are not finite; leave it out")
    if not groups:
        raise ValueError("curation: no features; give at least one group [N, D]")
    if bool((gains < 0).any()) or bool(np.isinf(gains).any()):
        raise ValueError("curation: gains must be finite and at least 0; NaN is for what cannot be chosen")


def _canonical(groups: Sequence[np.ndarray], gains: np.ndarray) -> np.ndarray:
    """An order that depends only on the values, because greedy selection breaks ties by position."""
    rows = np.ascontiguousarray(np.concatenate([gains[:, None], *groups], axis=1))
    return np.array(sorted(range(len(rows)), key=lambda index: rows[index].tobytes()))


def _ranks(gains: np.ndarray) -> np.ndarray:
    """0 (least) .. 1 (most); equal gains share the mean of their ranks."""
    from scipy.stats import rankdata

    return (rankdata(gains) - 1) / (len(gains) - 1) if len(gains) > 1 else np.ones_like(gains)


def _report(
    similarity: np.ndarray, worth: np.ndarray, gains: np.ndarray, chosen: Sequence[int], seed: int
) -> dict[str, Any]:
    best = facility_location(worth, range(worth.shape[1]))
    rng = np.random.default_rng(seed)
    subsets = [rng.choice(len(gains), len(chosen), replace=False) for _ in range(RANDOM_SUBSETS)]

    def described(subset: Sequence[int] | np.ndarray) -> dict[str, float]:
        picked = list(subset)
        return {
            "coverage": facility_location(similarity, picked) / len(similarity),
            "mean_gain": float(gains[picked].mean()),
            "gain_share": float(gains[picked].sum() / gains.sum())
            if gains.any()
            else float(len(picked) / len(gains)),
            "objective": facility_location(worth, picked) / best,
        }

    at_random = [described(subset) for subset in subsets]
    means = {name: float(np.mean([one[name] for one in at_random])) for name in at_random[0]}
    everything = described(range(len(gains)))
    return {
        "curated": described(chosen),
        "random": {**means, "objective_best": max(one["objective"] for one in at_random)},
        "everything": {name: everything[name] for name in ("coverage", "mean_gain")},
    }
