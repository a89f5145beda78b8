"""Where clips begin and end: lengths of 1 + 4n frames, in pauses, never inside a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from experiments.preparation.records import Stretch

WORD_ROOM_S = 0.03  # around a word
STEP = 4  # frames: lengths are 1 + 4n
EPSILON_S = 1e-6


@dataclass(frozen=True)
class Piece:
    """A clip to be: `num_frames` at the target rate from `start_s` of the source."""

    start_s: float
    num_frames: int


@dataclass(frozen=True)
class Leftover:
    """A stretch of a scene that becomes no clip, and why."""

    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True)
class Lengths:
    """Which lengths a clip may have; `only`: numbers of frames of buckets, () for any 1 + 4n."""

    fps: float
    min_s: float
    max_s: float
    only: tuple[int, ...] = ()

    def allowed(self) -> list[int]:
        """Numbers of frames, the longest first."""
        low, high = self.min_s * self.fps - 1e-6, self.max_s * self.fps + 1e-6
        counts = self.only or range(1, int(high) + 1, STEP)
        return sorted((count for count in counts if low <= count <= high), reverse=True)


def plan(
    scene: Stretch, blocked: Iterable[Stretch], lengths: Lengths, pause_s: float
) -> list[Piece | Leftover]:
    """Pieces of a scene from its start on, each as long as it can be, with both ends in a pause of at least
    `pause_s` or at the scene's own end where nobody speaks. What is left over is said."""
    start_s, end_s = scene
    words = merged(blocked, pause_s)
    counts, found = lengths.allowed(), list[Piece | Leftover]()
    at = free_from(start_s, words)
    if at > start_s + EPSILON_S:
        found.append(Leftover(start_s, min(at, end_s), "the scene begins inside a word"))
    while end_s - at >= lengths.min_s - EPSILON_S and counts:
        count = next((count for count in counts if _fits(at, count / lengths.fps, end_s, words)), None)
        if count is not None:
            found.append(Piece(at, count))
            at = free_from(at + count / lengths.fps, words)
            continue
        later = _next_start(at, end_s, words)
        if later is None:
            break
        found.append(Leftover(at, later, "no pause at which a clip of an allowed length could end"))
        at = later
    if end_s - at > EPSILON_S:
        short = end_s - at < lengths.min_s
        found.append(Leftover(at, end_s, f"{'shorter than a clip' if short else 'no pause to end in'}"))
    return found


def merged(blocked: Iterable[Stretch], pause_s: float) -> list[Stretch]:
    """Disjoint intervals in order; gaps shorter than `pause_s` are no pauses."""
    found: list[list[float]] = []
    for start, end in sorted(blocked):
        if found and start - found[-1][1] < pause_s:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return [(start, end) for start, end in found]


def padded_words(words: Iterable[Stretch], room_s: float = WORD_ROOM_S) -> Iterator[Stretch]:
    for start, end in words:
        yield max(0.0, start - room_s), end + room_s


def free_from(at: float, words: Sequence[Stretch]) -> float:
    """`at`, or the end of the word that it is in."""
    for start, end in words:
        if start < at < end:
            return end
    return at


def _fits(at: float, seconds: float, end_s: float, words: Sequence[Stretch]) -> bool:
    end = at + seconds
    return end <= end_s + EPSILON_S and not any(
        start + EPSILON_S < end < stop - EPSILON_S for start, stop in words
    )


def _next_start(at: float, end_s: float, words: Sequence[Stretch]) -> float | None:
    """The end of the next stretch of words after `at`."""
    return next((stop for _, stop in words if at + EPSILON_S < stop < end_s), None)
