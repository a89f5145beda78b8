"""How well a sync network separates true clips from clips with shifted sound.

Shifted sound is what actually precedes or follows; rolling or padding would leave artefacts that a network
could detect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.sync.inference import Embedder
from rewards.sync.windows import SyncInput, input_windows
from rewards.sync.zero_lag import zero_lag

REACH = 10  # frames of 40 ms to either side
FAR = 5  # moves of at least so many frames must be seen
NEAR = 1  # the offset may be wrong by so many frames
LISTED = (0, 1, 2, 3, 5, 7, 10)


@dataclass(frozen=True, eq=False)
class MovedCuts:
    """The cuts of one clip with sound shifted by -10..10 frames (positive: later sound)."""

    moves: np.ndarray  # int [K]
    rewards: np.ndarray  # float64 [cuts, K]
    errors: np.ndarray  # int [cuts, K], estimated offset less the true one, frames


@dataclass(frozen=True)
class Count:
    """A clip's part of a share or mean: resample (total, number) pairs over clips to get its interval."""

    total: float
    number: int


def moved_cuts(v: np.ndarray, a: np.ndarray, num_windows: int, reach: int = REACH) -> MovedCuts:
    """Cuts of `num_windows` windows side by side from the middle of a clip with embeddings v and a, [n, D].

    A window's embedding depends on nothing but its own frames and sound, so cutting embeddings is cutting the
    clip. Raises ValueError when the clip has no room for one cut and `reach` windows on both sides.
    """
    room = len(v) - 2 * reach
    if room < num_windows or len(a) != len(v):
        raise ValueError(
            f"{len(v)} and {len(a)} windows; a cut of {num_windows} moved by {reach} wants "
            f"{num_windows + 2 * reach} of both"
        )
    count = room // num_windows
    starts = reach + (room - count * num_windows) // 2 + num_windows * np.arange(count)
    moves = np.arange(-reach, reach + 1)
    found = [
        [zero_lag(v[s : s + num_windows], a[s + k : s + k + num_windows]) for k in moves] for s in starts
    ]
    rewards = np.array([[answer.value for answer in row] for row in found])
    return MovedCuts(moves, rewards, np.array([[answer.best_lag for answer in row] for row in found]) + moves)


def embedded(embedder: Embedder, clips: Sequence[SyncInput]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(lips, sound) embeddings [n, D] of every clip."""
    pictures, sounds = zip(*(input_windows(clip, embedder.args.log_floor) for clip in clips), strict=True)
    return list(zip(embedder.lips(pictures), embedder.sound(sounds), strict=True))


def true_over_moved(cuts: MovedCuts, far: int = FAR) -> Count:
    """Pairs of a true cut and one moved by >= `far` frames won by the true one; ties count half."""
    true = cuts.rewards[:, cuts.moves == 0]
    moved = cuts.rewards[:, np.abs(cuts.moves) >= far]
    return Count(float((true > moved).sum() + 0.5 * (true == moved).sum()), moved.size)


def offset_found(cuts: MovedCuts, near: int = NEAR) -> Count:
    """Moved cuts (and true ones) whose estimated offset is wrong by at most `near` frames."""
    return Count(float((np.abs(cuts.errors) <= near).sum()), cuts.errors.size)


def rank_correlation(cuts: MovedCuts) -> Count:
    """Spearman correlation of the reward with -|move|, cut by cut."""
    from scipy.stats import rankdata

    ranks, wanted = rankdata(cuts.rewards, axis=1), rankdata(-np.abs(cuts.moves))
    return Count(float(sum(np.corrcoef(row, wanted)[0, 1] for row in ranks)), len(ranks))


def reward_at(cuts: MovedCuts, distance: int) -> Count:
    """The reward of cuts moved by `distance` frames either way."""
    rewards = cuts.rewards[:, np.abs(cuts.moves) == distance]
    return Count(float(rewards.sum()), rewards.size)


def measures(cuts: MovedCuts) -> dict[str, Count]:
    """Everything above by name."""
    return {
        "true_over_moved": true_over_moved(cuts),
        "offset_within_1": offset_found(cuts),
        "offset_within_1_unmoved": offset_found(
            MovedCuts(cuts.moves[[REACH]], cuts.rewards[:, [REACH]], cuts.errors[:, [REACH]])
        ),
        "spearman": rank_correlation(cuts),
        **{f"reward_at_{distance}": reward_at(cuts, distance) for distance in LISTED},
    }
