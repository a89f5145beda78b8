"""Held-out scorings beside the first one: paired by prompt, in whatever order, whatever could be scored."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from align_world import align_run, config, write_mixed, write_world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_align_pairs import dpo

from finetune.executor import RoundScores
from finetune.held_out import HeldOutChange, compare, paired_change, unit
from finetune.judges import alarms
from finetune.launch import describe
from finetune.loop import Alignment
from finetune.progress import AlignProgress
from finetune.prompts import read_prompt_set, shares_by_kind
from finetune.recipe import RubricConfig, StopConfig
from pretrain.randomness import stable_hash

NAN = math.nan
RUBRIC = RubricConfig(audio={"warm": 2.0}, sync={}, watched=("ear",))
NUMBERS = st.integers(-20, 20).map(lambda value: value / 8)


def scores(warm: list[float], ear: list[float] | None = None, ids: list[int] | None = None) -> RoundScores:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    groups = torch.tensor(ids or list(range(100, 100 + len(warm))))
    judges = {"ear": column(ear)} if ear else {}
    return RoundScores(groups, {"warm": column(warm)}, {}, {"warm": "no voice is heard"}, judges)


def compared(*scorings: RoundScores, progress: AlignProgress | None = None) -> HeldOutChange:
    """The last one beside the first; progress goes through a checkpoint between two."""
    progress = progress or AlignProgress()
    for each in scorings[:-1]:
        compare(progress, each, RUBRIC)
        progress = AlignProgress.from_json(json.dumps(asdict(progress)))
    return compare(progress, scorings[-1], RUBRIC)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_where_all_are_scored_the_total_is_the_change_of_means_in_deviations(values):
    first, now = (torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))
    found = compared(scores(first.tolist()), scores(now.tolist()))
    spread = float(first.std()) or max(1.0, abs(float(first.mean())))
    assert found.total == pytest.approx(2.0 * float(now.mean() - first.mean()) / spread, abs=1e-9)
    assert found.lost == {"warm": 0.0}
    assert compared(scores(first.tolist()), scores(first.tolist())).total == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.booleans()), min_size=1, max_size=12))
def test_a_clip_that_cannot_be_scored_any_longer_never_raises_the_mean(values):
    first, now = [a for a, _, _ in values], [b for _, b, _ in values]
    left = [None if gone else b for _, b, gone in values]
    change, lost = paired_change(first, left)
    assert lost == pytest.approx(sum(gone for *_, gone in values) / len(values))
    worst = min([*first, *(value for value in left if value is not None)])
    at_best = [max(b, worst) for b in now]  # no clip is counted for less than any that is scored
    assert change <= paired_change(first, at_best)[0] + 1e-9
    assert (
        change <= paired_change(first, [a if b is None else b for a, b in zip(first, left, strict=True)])[0]
    )
    # another reward that loses all of it gains nothing, and one that is scored only now takes no part
    assert paired_change([*first, None], [*left, 1e6]) == (change, lost)


def test_losing_the_worse_half_is_no_new_best():
    """Every clip 0.05 worse, the worse half unscored: the mean over what is left rises by 0.25."""
    first = [index / 10 for index in range(10)]
    found = compared(scores(first), scores([NAN] * 5 + [value - 0.05 for value in first[5:]]))
    assert found.total < 0 and found.lost == {"warm": 0.5}
    # lost clips count as 0, the worst: -(0 + .1 + .2 + .3 + .4) - 5 * 0.05, of ten
    assert found.total == pytest.approx(2.0 * -0.125 / float(torch.tensor(first).std()), rel=1e-5)
    assert compared(scores(first), scores([NAN] * 10)).total < found.total


def test_the_scale_of_prompts_that_are_alike_is_that_of_their_mean():
    assert compared(scores([0.5]), scores([0.51])).total == pytest.approx(0.02)
    assert unit([30.0, 30.0 + 1e-9, None], 1e-6) == pytest.approx(30.0)
    assert unit([0.0, 0.0], 1e-6) == 1.0 and unit([1.0, 3.0, None], 1e-6) == pytest.approx(math.sqrt(2))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.booleans()), min_size=3, max_size=10),
    st.randoms(use_true_random=False),
)
def test_the_order_of_ranks_does_not_matter(values, random):
    ids = [stable_hash("prompt", index) for index in range(len(values))]
    first = scores([a for a, *_ in values], [b for _, b, *_ in values], ids)
    now = [(NAN if gone else c, b + c) for _, b, c, gone in values]
    order = random.sample(range(len(ids)), len(ids))
    same = compared(first, scores([a for a, _ in now], [b for _, b in now], ids))
    moved = compared(
        first,
        scores([now[i][0] for i in order], [now[i][1] for i in order], [ids[i] for i in order]),
    )
    assert same == moved


def test_prompts_of_two_kinds_are_the_same_ones_on_one_and_on_two_ranks(tmp_path):
    """The order of the clips differs; a fall of every prompt by 0.31 has no width on either."""
    world = write_mixed(write_world(tmp_path))
    made = config(stop=StopConfig(prompts=6))
    rows = read_prompt_set(world / "mixed.jsonl", made, None, world / "held_out.jsonl").held_out
    ids = {row.data_id: stable_hash(row.data_id) for row in rows}

    def scored(world_size: int, away: float) -> RoundScores:
        own = [
            row.data_id
            for rank in range(world_size)
            for part in shares_by_kind(rows, made, rank, world_size)
            for row in part.own
        ]
        values = [float(ids[name] % 1000) + away for name in own]
        return scores(values, values, [ids[name] for name in own])

    assert scored(1, 0.0).groups.tolist() != scored(2, 0.0).groups.tolist()
    found = compared(scored(1, 0.0), scored(2, -0.31)).changes["ear"]
    assert found.low == pytest.approx(-0.31) and found.high == pytest.approx(-0.31)


def test_a_judge_that_can_score_fewer_clips_sounds_the_alarm():
    first = scores([0.0] * 12, [float(index) for index in range(12)])
    fewer = scores([1.0] * 12, [NAN] * 5 + [float(index) for index in range(5, 12)])
    found = compared(first, fewer)
    assert found.changes["ear"].mean == 0.0 and found.coverage["ear"].mean == pytest.approx(-5 / 12)
    assert alarms(found.total, found.changes, found.coverage) == ["ear"]
    assert alarms(-found.total, found.changes, found.coverage) == []
    gone = compared(first, scores([1.0] * 12, [NAN] * 12))
    assert "ear" not in gone.changes and alarms(1.0, gone.changes, gone.coverage) == ["ear"]
    one = compared(first, scores([1.0] * 12, [NAN] + [float(index) for index in range(1, 12)]))
    assert alarms(1.0, one.changes, one.coverage) == []


class Scripted:
    """An executor whose held-out scorings are given; its rounds always have contrast."""

    def __init__(self, scorings: list[RoundScores], progress: AlignProgress | None = None) -> None:
        self.scorings, self.progress = scorings, progress or AlignProgress()
        self.best: list[int] = []
        self.saved: list[AlignProgress] = []

    def load(self) -> AlignProgress:
        return self.progress

    def collect(self, place: int, index: int, first: int):
        values = {"warm": torch.tensor([0.0, 1.0], dtype=torch.float64)}
        return RoundScores(torch.tensor([0, 0]), values, {}), {}

    def learn(self, place: int, index: int, advantage: object) -> dict[str, float]:
        return {}

    def score_held_out(self, rounds: int) -> RoundScores:
        self.rounds = rounds
        return self.scorings.pop(0)

    def keep_best(self) -> None:
        self.best.append(self.rounds)

    def save(self, progress: AlignProgress) -> None:
        self.saved.append(AlignProgress.from_json(json.dumps(asdict(progress))))

    def __getattr__(self, name: str) -> Any:
        return lambda *given: None


def aligned(
    out: Path, scorings: list[RoundScores], progress: AlignProgress | None = None, rounds: int = 0
) -> tuple[Scripted, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    executor = Scripted(scorings, progress)
    made = config(rounds=rounds or len(scorings) - 1, rubric=RUBRIC, stop=StopConfig(prompts=4, every=1))
    alignment = Alignment(align_run(out, out, made), executor, lambda row, step: rows.append(row))  # type: ignore[arg-type]
    alignment.resume()
    alignment.run_rounds()
    return executor, rows


def test_best_follows_the_paired_total_and_the_log_says_what_was_lost(tmp_path):
    first = [0.0, 0.1, 0.2, 0.9]
    executor, rows = aligned(
        tmp_path, [scores(first), scores([NAN, NAN, 0.2, 0.95]), scores([0.05, 0.1, 0.2, 0.9])]
    )
    assert executor.best == [0, 2]
    assert [row["held_out/lost/warm"] for row in rows] == [0.0, 0.5, 0.0]
    assert "counted as the worst: warm 50 %" in describe(rows[1]) and "worst" not in describe(rows[2])


def test_a_reward_that_scores_no_held_out_prompt_at_first_is_refused_with_its_reason(tmp_path):
    with pytest.raises(ValueError, match=r"reward warm could score none of 4 clips \(no voice is heard\)"):
        aligned(tmp_path, [scores([NAN] * 4), scores([5.0] * 4)])
    with pytest.raises(ValueError, match="held-out prompts: warm is infinite"):
        aligned(tmp_path, [scores([0.0, 1.0, 2.0, math.inf]), scores([5.0] * 4)])


def earlier(**fields: Any) -> AlignProgress:
    """Progress as versions wrote it that kept means and positions."""
    known = {"rounds": 1, "phase": 0, "phase_rounds": 1, "best_total": 0.0, **fields}
    return AlignProgress.from_json(json.dumps(known))


def test_an_alignment_that_an_earlier_version_began_goes_on_and_says_how_it_compares(tmp_path):
    begun = earlier(baseline={"warm": [0.5, 0.25]}, judged={"ear": [0.0, 1.0, None, 3.0]})
    fallen = scores([0.6, 0.8, NAN, 1.0], [-1.0, 0.0, 5.0, 2.0])
    executor, rows = aligned(tmp_path, [fallen, scores([0.6, 0.8, 0.8, 1.0])], begun, rounds=3)
    assert rows[0]["held_out_total"] == pytest.approx(2.0 * 0.3 / 0.25)
    assert rows[0]["held_out/judge_change/ear"] == -1.0 and rows[0]["alarm/ear"] == 1.0
    assert executor.best == [3] and "as the version that began this alignment" in describe(rows[0])
    assert "held_out/lost/warm" not in rows[0]
    # what is known now is paired by prompt from here on
    assert executor.saved[-1].prompts == [100, 101, 102, 103] and executor.saved[-1].rewarded == {}
    later = compared(
        scores([0.0] * 4, [2.0, 5.0, 0.0, -1.0], [103, 102, 101, 100]), progress=executor.saved[-1]
    )
    assert later.changes["ear"].mean == -1.0


def test_a_reward_that_an_earlier_version_found_unscored_begins_where_it_scores(tmp_path):
    begun = earlier(baseline={"warm": [NAN, 0.0]})
    scorings = [scores([NAN] * 4), scores([0.0, 1.0, NAN, 3.0]), scores([1.0, 2.0, 9.0, 4.0])]
    executor, rows = aligned(tmp_path, scorings, begun, rounds=4)
    spread = float(torch.tensor([0.0, 1.0, 3.0]).std())
    assert [row["held_out_total"] for row in rows] == pytest.approx([0.0, 0.0, 2.0 / spread])
    assert [row["held_out/lost/warm"] for row in rows] == [1.0, 0.0, 0.0]
    assert executor.best == [4]


def test_other_held_out_prompts_are_another_first_scoring():
    """`--resume-anyway` with another file: what was best is nothing to compare with."""
    progress = AlignProgress()
    compare(progress, scores([0.0, 1.0, 2.0]), RUBRIC)
    progress.best_total = 3.0
    assert compare(progress, scores([5.0, 6.0, 8.0], ids=[100, 7, 8]), RUBRIC).total == pytest.approx(10.0)
    assert progress.best_total == 3.0
    assert compare(progress, scores([5.0, 6.0], ids=[7, 8]), RUBRIC).total == 0.0
    assert progress.prompts == [7, 8] and progress.best_total is None


class FlatThenPairs(Scripted):
    """Rollouts that nothing tells apart, then a phase of given batches."""

    def __init__(self) -> None:
        super().__init__([scores([0.0, 1.0]) for _ in range(4)])
        self.learned: list[int] = []

    def collect(self, place: int, index: int, first: int):
        values = {"warm": torch.zeros(2, dtype=torch.float64)}
        return (None if place else RoundScores(torch.tensor([0, 0]), values, {})), {}

    def learn(self, place: int, index: int, advantage: object) -> dict[str, float]:
        self.learned.append(index)
        return {}


def test_a_flat_round_at_the_end_of_a_phase_does_not_keep_the_next_one_from_learning(tmp_path):
    made = config(("nft", "gsb_dpo"), phases={"gsb_dpo": dpo(rounds=2)}, max_flat_rounds=2, rubric=RUBRIC)
    made = made.with_phase("nft", rounds=1)
    executor = FlatThenPairs()
    alignment = Alignment(align_run(tmp_path, tmp_path, made), executor, lambda row, step: None)  # type: ignore[arg-type]
    alignment.resume()
    assert alignment.run_rounds() == "finished" and executor.learned == [1, 2]
