"""Clips of different callers in one batch: each is answered for itself."""

import asyncio
import time

import pytest

from orchestration.service.scoring import MAX_LOST, Died, score_apart
from rewards.types import Clip, Score


class Holder:
    """Dies of clips called `kill`, hangs on `hang`, raises on `raise`; the rest is worth the length of its
    name."""

    def __init__(self) -> None:
        self.replaced, self.batches, self.alive = 0, [], True

    async def ready(self) -> None:
        assert self.alive

    async def score(self, clips):
        self.batches.append(len(clips))
        names = [clip.name for clip in clips]
        if "kill" in names:
            self.alive = False
            raise Died("gone")
        if "hang" in names:
            self.alive = False
            await asyncio.sleep(30)
        if "raise" in names:
            raise ValueError("no\nsuch thing")
        if "few" in names:
            return []
        return [Score(len(name)) for name in names]

    async def replace(self) -> None:
        self.replaced, self.alive = self.replaced + 1, True


def answers(*names, seconds=0.1):
    holder = Holder()
    clips = [Clip(None, 16_000, name=name) for name in names]
    found = asyncio.run(score_apart(clips, holder, seconds))
    return [answer if isinstance(answer, str) else answer.value for answer in found], holder


def test_a_good_batch_is_scored_at_once():
    found, holder = answers("a", "bb", "ccc")
    assert found == [1, 2, 3] and holder.batches == [3] and holder.replaced == 0


BAD = {"kill": "process died", "hang": "no answer after", "raise": "no such thing", "few": "something else"}


@pytest.mark.parametrize(("bad", "said"), BAD.items())
def test_the_clip_at_fault_is_the_only_one_with_an_error(bad, said):
    found, holder = answers("a", bad, "ccc")
    assert found[0] == 1 and found[2] == 3 and said in str(found[1])
    assert holder.alive and holder.batches == [3, 1, 1, 1]


@pytest.mark.parametrize(("bad", "batches"), [("kill", [1, 1]), ("hang", [1]), ("raise", [1])])
def test_alone_it_is_tried_again_only_where_others_may_have_killed_its_process(bad, batches):
    found, holder = answers(bad)
    assert BAD[bad] in str(found[0]) and holder.batches == batches and holder.alive


def test_a_process_that_was_killed_before_costs_nothing():
    holder = Holder()
    score, calls = holder.score, []

    async def dead_at_first(clips):
        calls.append(len(clips))
        if len(calls) == 1:
            raise Died
        return await score(clips)

    holder.score = dead_at_first
    assert asyncio.run(score_apart([Clip(None, 16_000, name="a")], holder, 1.0)) == [Score(1)]


def test_a_reward_that_always_hangs_costs_a_batch_bounded_time():
    started = time.monotonic()
    found, holder = answers(*["hang"] * 20, seconds=0.05)
    assert time.monotonic() - started < 2 and len(holder.batches) == 1 + MAX_LOST
    assert all(isinstance(answer, str) for answer in found) and "try again" in str(found[-1])


def test_an_error_names_the_reward_and_the_clip():
    clips = [Clip(None, 16_000, name=name) for name in ("a", "raise", "")]
    found = asyncio.run(score_apart(clips, Holder(), 1.0, "temper"))
    assert found == [Score(1), "reward temper failed on raise: no such thing", Score(0)]
