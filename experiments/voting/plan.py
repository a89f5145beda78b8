"""Who sees what, on which side, in which order: balanced, and a pure function of (seed, rater's number).

Case i of a pair has a bit, half of them set; rater r sees the pair's first model left where bit + r is even.
So each rater has each model left in half of a pair's cases (within one), and each case has each model left
for half of its raters (within one). Orders are rotations of one shuffled list, so every case comes early for
some and late for others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest

import numpy as np

ModelPair = tuple[str, str]
SPOILT = ("desync", "voice")


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One showing; `kind` vote, repeat, or the way in which one of two copies is spoilt."""

    kind: str
    case: int
    left: str  # model
    right: str  # the same as left in an attention check
    left_is_spoilt: bool = False
    repeat: int = 0


@dataclass(frozen=True)
class Shares:
    """Of a rater's votes: repeats with swapped sides, attention checks, cases that all raters see."""

    repeats: float = 0.05
    attention: float = 0.05
    shared: float = 0.2

    def __post_init__(self) -> None:
        for name, value in (
            ("repeats", self.repeats),
            ("attention", self.attention),
            ("shared", self.shared),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"--{name} {value}: expected a share of 0 to 1")


def model_pairs(models: Sequence[str]) -> list[ModelPair]:
    return list(combinations(sorted(models), 2))


def left_bits(seed: int, pair: ModelPair, num_cases: int) -> np.ndarray:
    """bool [num_cases], half of them set, in an order of the seed's."""
    bits = np.arange(num_cases) % 2 == 0
    return _generator(seed, "side", *pair).permutation(bits)


def quotas(
    variances: Mapping[ModelPair, float], votes: Mapping[ModelPair, float], num: int
) -> dict[ModelPair, int]:
    """`num` further votes to the pairs whose GSB is least sure: each to the largest variance / votes."""
    given = dict.fromkeys(variances, 0)
    for _ in range(num):
        least_sure = max(given, key=lambda pair: variances[pair] / (votes.get(pair, 0) + given[pair] + 1))
        given[least_sure] += 1
    return given


def chosen_cases(
    seed: int, pair: ModelPair, num_cases: int, num: int, shared: float, asked: Sequence[int]
) -> list[int]:
    """`num` cases of a pair: first those that every rater sees, then those asked least so far.

    asked[i]: raters who were given case i of this pair.
    """
    shuffled = _generator(seed, "cases", *pair).permutation(num_cases).tolist()
    bits, chosen = left_bits(seed, pair, num_cases), list[int]()
    halves = [[case for case in shuffled if bits[case]], [case for case in shuffled if not bits[case]]]
    order = [case for both in zip_longest(*halves) for case in both if case is not None]
    num = min(num, num_cases)
    common = order[: math.ceil(shared * num)]
    room = {True: math.ceil(num / 2), False: math.ceil(num / 2)}  # as many with each side
    for case in common + sorted(order[len(common) :], key=lambda case: asked[case]):
        if len(chosen) < num and room[bool(bits[case])]:
            room[bool(bits[case])] -= 1
            chosen.append(case)
    return chosen


def plan_tasks(
    seed: int,
    rater: int,
    num_cases: int,
    chosen: Mapping[ModelPair, Sequence[int]],
    shares: Shares,
    spoilt: Sequence[tuple[int, str, str]] = (),
) -> list[PlannedTask]:
    """The tasks of one rater, in order.

    chosen: cases of each pair of models; spoilt: (case, model, way) of each spoilt copy there is.
    """
    votes = []
    for pair, its_cases in sorted(chosen.items()):
        bits = left_bits(seed, pair, num_cases)
        for case in its_cases:
            left, right = pair if (int(bits[case]) + rater) % 2 == 0 else pair[::-1]
            votes.append(PlannedTask("vote", case, left, right))
    order = _generator(seed, "order").permutation(len(votes)).tolist()
    step = _golden_step(len(order))
    start = rater * step % max(1, len(order))
    votes = [votes[index] for index in order[start:] + order[:start]]
    planned = _with_repeats(votes, math.ceil(shares.repeats * len(votes)), seed, rater)
    checks = _checks(spoilt, math.ceil(shares.attention * len(votes)), seed, rater)
    return _spread(planned, checks, seed, rater)


def _with_repeats(votes: list[PlannedTask], num: int, seed: int, rater: int) -> list[PlannedTask]:
    """Repeats of early votes, sides swapped, in the last third and at least a third of the list later."""
    if len(votes) < 2:
        return votes
    early = _generator(seed, "repeats", rater).permutation(max(1, len(votes) // 2)).tolist()
    planned = list(votes)
    for count, index in enumerate(sorted(early[:num])):
        task = votes[index]
        place = max(index + 2, len(votes) - len(votes) // 3 + index % max(1, len(votes) // 3)) + count
        planned.insert(
            min(place, len(planned)), PlannedTask("repeat", task.case, task.right, task.left, repeat=1)
        )
    return planned


def _checks(spoilt: Sequence[tuple[int, str, str]], num: int, seed: int, rater: int) -> list[PlannedTask]:
    """`num` attention checks of different cases where there are enough, ways and sides in turn."""
    if not spoilt:
        return []
    generator = _generator(seed, "checks", rater)
    by_way = {way: [entry for entry in spoilt if entry[2] == way] for way in SPOILT}
    queues = [generator.permutation(len(found)).tolist() for found in by_way.values()]
    first = int(generator.integers(2))
    checks: list[PlannedTask] = []
    for count in range(min(num, len(spoilt))):
        turn = (count + rater) % len(SPOILT)
        turn = turn if queues[turn] else 1 - turn
        case, model, way = by_way[SPOILT[turn]][queues[turn].pop()]
        checks.append(PlannedTask(way, case, model, model, left_is_spoilt=(count + first) % 2 == 0))
    return checks


def _spread(
    planned: list[PlannedTask], checks: Sequence[PlannedTask], seed: int, rater: int
) -> list[PlannedTask]:
    """The checks at even distances, each moved by chance within its part."""
    generator = _generator(seed, "spread", rater)
    part = len(planned) / (len(checks) + 1)
    places = [round(part * (i + 0.5 + float(generator.random()))) for i in range(len(checks))]
    for offset, (place, check) in enumerate(sorted(zip(places, checks, strict=True), key=lambda x: x[0])):
        planned.insert(min(max(1, place) + offset, len(planned)), check)
    return planned


def _golden_step(length: int) -> int:
    """About 0.618 of the length and prime to it, so that rotations visit every start once."""
    step = max(1, round(length * 0.618))
    while length > 1 and math.gcd(step, length) > 1:
        step += 1
    return step


def _generator(seed: int, *key: object) -> np.random.Generator:
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
