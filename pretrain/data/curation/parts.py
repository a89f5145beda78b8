"""Facility location past memory: a greedy choice in random parts, and one among what the parts chose.

Two rounds over submodlib (GreeDi, Mirzasoleiman et al. 2013; with random parts RandGreeDi, Barbosa et al.
2015, arXiv 1502.02606). Where every part chooses the whole budget and both rounds know f, the better of the
merged choice and of the parts' is, in expectation, at least half of what greedy guarantees: (1 - 1/e) / 2 of
the best. Here a part knows the worth of its own clips to each other, and the second round a random sample of
all; f is a mean over clips, so both are unbiased. For budgets beyond the second round's kernel clips are cut
into random groups first, each with its share of the budget; no bound is known for that. `report.py` states
what a choice is worth at least, by its own numbers.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial

import numpy as np

from pretrain.data.curation.greedy import choose
from pretrain.data.curation.processes import each_in_processes, one_thread
from pretrain.data.curation.worth import Worth
from pretrain.progress import track

OVERSAMPLED = 2.0  # at least so many times the budget come to the second round


@dataclass(frozen=True, kw_only=True)
class PartLimits:
    """clips: of a part, whose kernel is their square; cells: of the second round's kernel, 8 bytes each with
    submodlib's copy."""

    clips: int = 4000
    cells: int = 100_000_000

    @property
    def budget(self) -> int:
        """The greatest budget of one second round: twice as many candidates, as many clips to stand for."""
        return max(1, math.isqrt(int(self.cells / OVERSAMPLED)))


@dataclass(frozen=True)
class PartedChoice:
    """Sorted indices of the chosen clips, and how they were found."""

    indices: list[int]
    groups: int
    parts: int  # of a group
    picks: int  # the most that a part chose
    candidates: int  # of a second round
    represented: int


def choose_in_parts(
    worth: Worth, budget: int, seed: int = 0, nproc: int = 0, limits: PartLimits | None = None
) -> PartedChoice:
    """`budget` of all clips. The same for any number of processes (nproc 0: one for each processor)."""
    limits, count = limits or PartLimits(), len(worth)
    if budget >= count:
        return PartedChoice(list(range(count)), 1, 1, count, count, count)
    shuffled = np.random.default_rng(seed).permutation(count)
    groups = -(-budget // limits.budget)
    budgets = [len(some) for some in np.array_split(np.arange(budget), groups)]
    found = [
        _two_rounds(worth, np.sort(members), share, seed + number, nproc or os.cpu_count() or 1, limits)
        for number, (members, share) in enumerate(zip(np.array_split(shuffled, groups), budgets, strict=True))
    ]
    indices = sorted(index for one in found for index in one.indices)
    first = found[0]
    return PartedChoice(indices, groups, first.parts, first.picks, first.candidates, first.represented)


def _two_rounds(
    worth: Worth, members: np.ndarray, budget: int, seed: int, nproc: int, limits: PartLimits
) -> PartedChoice:
    """The choice among `members`, sorted indices of clips."""
    rng = np.random.default_rng([seed, 1])
    count = -(-len(members) // limits.clips)
    parts = [np.sort(part) for part in np.array_split(rng.permutation(members), count)]
    most = max(math.isqrt(limits.cells), math.ceil(OVERSAMPLED * budget))
    picks = min(budget, -(-most // count))
    jobs = [(part, min(picks, len(part))) for part in parts]
    answers: list[list[int]] = [[] for _ in parts]
    results = each_in_processes(partial(_choose_in_part, worth), jobs, nproc)
    for place, chosen in track(results, len(jobs), "parts curated"):
        answers[place] = chosen
    candidates = np.array(sorted(index for chosen in answers for index in chosen))
    represented = np.sort(rng.permutation(members)[: max(1, limits.cells // len(candidates))])
    with one_thread():
        merged = candidates[choose(worth.block(represented, candidates), budget)]
        whole = [np.array(chosen) for chosen in answers if len(chosen) == budget]
        values = [float(worth.covered(represented, some).sum()) for some in (merged, *whole)]
    best = (merged, *whole)[int(np.argmax(values))]
    return PartedChoice(best.tolist(), 1, count, picks, len(candidates), len(represented))


def _choose_in_part(worth: Worth, job: tuple[np.ndarray, int]) -> list[int]:
    part, picks = job
    return part[choose(worth.block(part, part), picks)].tolist()
