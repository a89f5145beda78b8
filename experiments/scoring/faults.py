"""One clip's trouble is that clip's: what cannot be read, and what a reward fails on, as reasons of rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.scoring.clips import ClipFile
from pretrain.config import one_line
from rewards.base import Reward, unscored
from rewards.types import Clip, Score

FIRST = 5  # reasons that are told when too many clips cannot be read
FAILURES_IN_A_ROW = 8  # of one reward, over batches; after that it is taken to be broken
OF_THE_MACHINE = ("out of memory", "cuda", "cublas", "cudnn", "nccl", "device-side")  # in messages of torch
MAX_CAUSES = 10  # of an error, followed back


class TooManyUnreadable(ValueError):
    """More clips than allowed cannot be read."""


class RewardBroken(ValueError):
    """A reward, and no clip, is at fault."""


@dataclass(frozen=True)
class Unreadable:
    """Why a clip has no scores. `reason` = `file: why`; `again`: another run may read it."""

    file: str
    why: str
    again: bool

    @property
    def reason(self) -> str:
        return f"{self.file}: {self.why}"


def unreadable(clip: ClipFile, error: Exception) -> Unreadable:
    """Any error of reading a clip or a file that it refers to, by the file at fault."""
    text = one_line(error)
    for path in (clip.path, *clip.attached()):
        if text.startswith(f"{path}: "):
            why = text.removeprefix(f"{path}: ").replace(str(path), path.name)
            return Unreadable(str(path), why, _may_pass(error))
    kind = type(error).__name__
    return Unreadable(str(clip.path), f"decoding failed ({kind}: {text})", _may_pass(error))


def _may_pass(error: BaseException | None) -> bool:
    """Memory, or an error of the operating system other than a missing file, somewhere behind the error.

    Pillow's OSError about a file's content has no number.
    """
    for _ in range(MAX_CAUSES):
        if error is None:
            return False
        numbered = isinstance(error, OSError) and isinstance(error.errno, int) and error.errno > 0
        if isinstance(error, MemoryError) or (numbered and not isinstance(error, FileNotFoundError)):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class ReadTally:
    """Counts the clips that cannot be read; `full` once they are more than `share` of `num_clips`, and
    FIRST at least."""

    num_clips: int
    share: float
    reasons: list[str] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.reasons) >= FIRST and len(self.reasons) > self.share * self.num_clips

    def error(self, out: Path) -> TooManyUnreadable:
        return TooManyUnreadable(
            f"{len(self.reasons)} of {self.num_clips} clips cannot be read, more than --max-unreadable "
            f"{self.share:g} allows; the first {FIRST}: {'; '.join(self.reasons[:FIRST])} (what is scored is "
            f"kept in {out}; mend the files, or allow more)"
        )


@dataclass
class IsolatedReward:
    """A reward whose failed batches are scored again clip by clip; `broken` is set once it failed on
    FAILURES_IN_A_ROW clips."""

    name: str
    reward: Reward
    in_a_row: int = 0
    broken: RewardBroken | None = None

    def scores(self, clips: Sequence[Clip]) -> tuple[list[Score], dict[int, str]]:
        """A score per clip, and for the places where the reward raised what it raised.

        After FAILURES_IN_A_ROW the rest has the reason that it was not tried. Raises ValueError where the
        answer is not one score per clip.
        """
        try:
            scores = answered(self.name, self.reward, clips)
        except RewardBroken:
            raise
        except Exception:
            pass  # each clip is tried alone below, which tells its error
        else:
            self.in_a_row = 0
            return scores, {}
        failed: dict[int, str] = {}
        alone: list[Score] = []
        for place, clip in enumerate(clips):
            score, failed_with = self._alone(clip)
            alone.append(score)
            if failed_with:
                failed[place] = failed_with
        return alone, failed

    def _alone(self, clip: Clip) -> tuple[Score, str]:
        if self.broken:
            return unscored(f"not tried, as reward {self.name} fails"), f"not tried after {FAILURES_IN_A_ROW}"
        try:
            (score,) = answered(self.name, self.reward, [clip])
        except RewardBroken:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {one_line(error)}"
            reason = f"reward {self.name} failed on {clip.name}: {what}"
            self.in_a_row += 1
            if self.in_a_row >= FAILURES_IN_A_ROW:
                self.broken = RewardBroken(f"{reason} ({self.in_a_row} clips in a row)")
                self.broken.__cause__ = error
            return unscored(reason), what
        self.in_a_row = 0
        return score, ""


@dataclass
class CarefulReward:
    """A Reward for a run that goes on: a clip that it raises on has no score, and what was raised as reason.

    That is where others can be scored: of the same batch, or of earlier ones while fewer than
    FAILURES_IN_A_ROW clips failed since, or all of one prompt. Else, and for what is never a clip's (memory,
    files and connections, the GPU), it raises RewardBroken in one line. stderr has the first such clip.
    """

    name: str
    reward: Reward
    has_scored: bool = False
    # prompts of the clips that failed since the last batch in which one was scored
    failed: list[str] = field(default_factory=list)
    told: bool = False

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        try:
            scores = answered(self.name, self.reward, clips)
        except RewardBroken:
            raise
        except Exception as error:
            if not may_be_of_a_clip(error):
                some = f"{len(clips)} clips (from {clips[0].name})" if len(clips) > 1 else clips[0].name
                raise self._broken(some, error) from error
            return self._one_by_one(clips, error)
        self.has_scored, self.failed = self.has_scored or bool(clips), []
        return scores

    def _one_by_one(self, clips: Sequence[Clip], error: Exception) -> list[Score]:
        tried = [self._alone(clip) for clip in clips] if len(clips) > 1 else [error]
        failed = {place: answer for place, answer in enumerate(tried) if not isinstance(answer, Score)}
        if not failed:
            raise self._broken(
                f"{len(clips)} clips at once (from {clips[0].name}), on none of them alone", error
            )
        place, first = next(iter(failed.items()))
        if len(failed) < len(clips):
            self.has_scored, self.failed = True, []
        else:
            self.failed += [clip.prompt for clip in clips]
            few = len(self.failed) < FAILURES_IN_A_ROW or len(set(self.failed)) == 1
            if not (self.has_scored and few):
                raise self._broken(clips[place].name, first)
        if not self.told:
            self.told = True
            print(f"{self._reason(clips[place].name, first)}; it has no score", file=sys.stderr, flush=True)
        return [
            answer if isinstance(answer, Score) else unscored(self._reason(clip.name, answer))
            for clip, answer in zip(clips, tried, strict=True)
        ]

    def _alone(self, clip: Clip) -> Score | Exception:
        try:
            return answered(self.name, self.reward, [clip])[0]
        except RewardBroken:
            raise
        except Exception as error:
            if not may_be_of_a_clip(error):
                raise self._broken(clip.name, error) from error
            return error

    def _reason(self, where: str, error: Exception) -> str:
        return f"reward {self.name} failed on {where or 'a clip'}: {type(error).__name__}: {one_line(error)}"

    def _broken(self, where: str, error: Exception) -> RewardBroken:
        broken = RewardBroken(self._reason(where, error))
        broken.__cause__ = error
        return broken


def may_be_of_a_clip(error: BaseException) -> bool:
    """Not memory, nor a file, a connection or a GPU: another clip would fail as well."""
    text = str(error).lower()
    return not isinstance(error, (OSError, MemoryError)) and not any(sign in text for sign in OF_THE_MACHINE)


def answered(name: str, reward: Reward, clips: Sequence[Clip]) -> list[Score]:
    """One score per clip. Raises what the reward raises, RewardBroken where it answers something else."""
    scores = reward.score(clips)
    if not isinstance(scores, Sequence) or len(scores) != len(clips):
        count = len(scores) if isinstance(scores, Sequence) else type(scores).__name__
        raise RewardBroken(f"reward {name}: {count} scores for {len(clips)} clips; it must answer every clip")
    if wrong := [score for score in scores if not isinstance(score, Score)]:
        raise RewardBroken(f"reward {name}: expected a list of Score, got {type(wrong[0]).__name__} in it")
    return list(scores)
