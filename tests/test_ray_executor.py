"""The driver's side of an alignment on Ray without Ray: a policy that is a number, clips that say which one
made them."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from align_world import align_run, config, write_world
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.align_run import AlignRun
from finetune.checkpoint import newest
from finetune.executor import RestoredFromCheckpoint, Stopped
from finetune.loop import Alignment
from finetune.objectives.gsb_dpo import GsbDpoPhase
from finetune.progress import AlignProgress
from finetune.prompts import read_prompt_set
from finetune.recipe import AlignConfig, StopConfig
from finetune.scores import Scores
from orchestration.executor import RayExecutor, Workforce
from orchestration.futures import Futures, LostRank
from orchestration.round import WorkerPool
from orchestration.tasks import ClipTask, Origin, TaskScores
from pretrain.randomness import stable_hash

RANKS, LOST = 2, "lost"


@dataclasses.dataclass(eq=False)
class Done:
    """A future with its answer."""

    value: Any


class Doing(Futures):
    """Everything is done at once; what is watched may be a loss."""

    def put(self, value: Any) -> Any:
        return value

    def wait(self, futures: Sequence[Any]) -> Sequence[Any]:
        if self.stoppable:
            self.check()
        for future in futures:
            if future in self._watched:
                if future.value == LOST:
                    raise LostRank("gone")
                self._watched[future] = future.value
        return futures

    def result(self, future: Any) -> Any:
        return future.value


class Numbers:
    """A group of ranks: `default` and `old` are numbers that depend on all that was learned. Each call may be
    the one that loses it."""

    def __init__(self, run: AlignRun, chance: Any) -> None:
        self.run, self.chance, self.actors = run, chance, [self]
        self.default = self.old = 1
        self.best = 0
        self.made: list[Any] = []
        self.given: list[list[Any]] = []  # the clips of every rank in the last update

    @property
    def address(self) -> Any:
        return dataclasses.make_dataclass("Remote", ["remote"])(lambda: Done(("host", 0)))

    def call(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Done]:
        if method == "do":
            method, arguments = arguments[0][0], [given[1:] for given in arguments]
        if self.chance(method):
            if method == "learn":
                self.default += 12345  # half done
            return [Done(None), Done(LOST)]
        resolved = [[one.value if isinstance(one, Done) else one for one in given] for given in arguments]
        if method == "learn":
            self.given = [given[4:] for given in resolved]
        answers = [getattr(self, f"_{method}")(rank, *given) for rank, given in enumerate(resolved)]
        return [Done(answer) for answer in answers]

    def end(self) -> None: ...

    def _join(self, rank: int, host: str, port: int) -> str:
        return "base"

    def _load(self, rank: int) -> AlignProgress:
        rounds = newest(self.run.out)
        path = self.run.out / "checkpoint" / f"step-{rounds}" / "state.json"
        if not path.is_file():
            return AlignProgress()
        state = json.loads(path.read_text())
        self.default, self.old, self.best = state["default"], state["old"], state["best"]
        return AlignProgress(**state["progress"])

    def _save(self, rank: int, progress: AlignProgress) -> None:
        folder = self.run.out / "checkpoint" / f"step-{progress.rounds}"
        if rank and not folder.exists():
            folder.mkdir(parents=True)
            state = {
                "default": self.default,
                "old": self.old,
                "best": self.best,
                "progress": dataclasses.asdict(progress),
            }
            (folder / "state.json").write_text(json.dumps(state))
            (folder / ".metadata").write_text("")

    def _begin_phase(self, rank: int, place: int) -> None:
        self.old = self.default

    def _update_old(self, rank: int, decay: float) -> None:
        if rank:
            self.old = stable_hash(self.old, self.default)

    def _weights(self, rank: int, role: str) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([getattr(self, role)])}

    def _averaged(self, rank: int) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([self.default])}

    def _keep_best(self, rank: int) -> None:
        self.best = self.default

    def _learn(self, rank: int, place: int, index: int, advantage: Any, fresh: bool, *made: Any) -> Any:
        """The last rank to be called moves the number by what all of them were given."""
        plan = self.run.config.objectives()[place].rollout()
        if plan is None:
            assert advantage is None and not made
            self.default = stable_hash(self.default, index) if rank else self.default
            return {"gsb_dpo/loss": 0.0}, [10 * index + rank]
        own = getattr(self, plan.role)
        if fresh:
            assert all(weights == own for _, weights, _ in made), (
                "clips of other weights pass for the policy's own"
            )
        self.made = [*(self.made if rank else ()), *(clip[1:] for clip in made)]
        if rank:
            self.default = stable_hash(self.default, index, str(self.made))
        return {"nft/loss": float(index)}, [sample for *_, samples in made for sample in samples]

    def _export(self, rank: int, progress: AlignProgress) -> str:
        return "" if rank else f"{self.default}-{self.best}"


class Worker:
    """Keeps the weights it has until a task names others, as rollout workers do."""

    version, weights = "", 0

    def roll_out(self, task: ClipTask, weights: Any) -> Done:
        if task.version != self.version:
            self.version, self.weights = task.version, int(weights["w"])
        samples = tuple(
            stable_hash(task.rows[place // task.plan.clips_per_prompt].data_id, place)
            for place in range(task.start, task.end)
        )
        return Done((task.version, self.weights, samples))


def score(task: ClipTask, clip: Any) -> Done:
    version, weights, samples = clip.value
    groups = torch.tensor([stable_hash(row.data_id) for row in task.prompts], dtype=torch.int64)
    draws = random.Random(str((task.key, weights)))
    values = torch.tensor([draws.random() for _ in samples], dtype=torch.float64)
    origin = Origin("one", 1, 0.0)
    return Done(
        TaskScores(Scores({"warm": values}), groups, torch.tensor(samples), version, (origin, origin))
    )


def executor_of(run: AlignRun, staleness: int, chance: Any, futures: Futures) -> RayExecutor:
    workers = [Worker(), Worker()]

    def rollout(weights: Any) -> WorkerPool[Any, Any, Any]:
        return WorkerPool("rollout", workers, lambda worker, task: worker.roll_out(task, weights(task)))

    force = Workforce(
        build=lambda: Numbers(run, chance),  # type: ignore[return-value, arg-type]
        rollout=rollout,  # type: ignore[return-value, arg-type]
        scorers={"rewards": WorkerPool("rewards", [0], lambda _, both: score(*both))},
        writer=None,
        ready=[],
    )
    return RayExecutor(
        run, read_prompt_set(run.prompts, run.config), RANKS, staleness, force, futures, 3, 10**6
    )


def aligned(
    run: AlignRun, staleness: int, chance: Any = lambda method: False, stop_at: int = -1
) -> tuple[str, str, list[Any], list[Any]]:
    """How it ended, the model, the ledger and the log. stop_at: rows of the log, then a signal comes."""
    futures = Doing()
    executor, rows = executor_of(run, staleness, chance, futures), {}

    def log(row: dict[str, Any], step: int) -> None:
        rows[step] = {name: value for name, value in row.items() if not name.startswith(("seconds", "work"))}
        futures.stop_requested |= len(rows) == stop_at

    alignment = Alignment(run, executor, log)
    alignment.resume()
    status = alignment.run_rounds()
    model = ""
    while status == "finished" and not model:
        try:
            model = executor.export(alignment.progress)
        except RestoredFromCheckpoint:
            alignment.resume()
    return status, model, executor.ledger.rows(), sorted(rows.items())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def recipe(sequence: tuple[str, ...], rounds: int, every: int, patience: int) -> AlignConfig:
    made = config(sequence, rounds=rounds, phase={"rollout_batch": 3}, checkpoint_every=every, samples=0)
    stop = StopConfig(prompts=2, every=1, patience=patience)
    pairs = GsbDpoPhase(rounds=rounds, pairs_per_round=8)
    return dataclasses.replace(made, phases={**made.phases, "gsb_dpo": pairs}, stop=stop)


SEQUENCES = st.sampled_from(
    [("nft",), ("nft", "grpo"), ("nft", "gsb_dpo", "nft"), ("gsb_dpo", "grpo"), ("grpo", "nft")]
)


@settings(max_examples=40, deadline=None)
@given(
    SEQUENCES,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 10**6),
    st.integers(0, 7),
)
def test_losses_and_stops_change_nothing(
    world, tmp_path_factory, sequence, rounds, every, patience, staleness, seed, stop_at
):
    """Ranks are lost at any call, a signal comes, the command is given again: ledger, model and log are those
    of a quiet run."""
    folder = tmp_path_factory.mktemp("runs")
    made = recipe(sequence, rounds, every, patience)
    quiet, shaken = align_run(world, folder / "quiet", made), align_run(world, folder / "shaken", made)
    draws = random.Random(seed)
    whole = aligned(quiet, staleness)
    status, model, ledger, log = aligned(shaken, staleness, lambda method: draws.random() < 0.1, stop_at)
    again = (
        aligned(shaken, staleness, lambda method: draws.random() < 0.1)
        if status == "interrupted"
        else (status, model, ledger, [])
    )
    assert again[:3] == whole[:3] and whole[0] == "finished"
    assert sorted((dict(log) | dict(again[3])).items()) == whole[3]
    for row in ledger:
        assert row["clips"] == (2 if row["task"] == "gsb_dpo" else 16) and row["round"] <= made.num_rounds
    shutil.rmtree(folder)


def test_a_rank_that_is_lost_while_it_loads_is_replaced(world, tmp_path):
    """Also where it has said what is there, and the version is to be published."""
    run = align_run(world, tmp_path, recipe(("nft",), 2, 1, 0))
    assert aligned(run, 0, stop_at=2)[0] == "interrupted"
    left = ["load", "weights", "weights"]
    status, *_ = aligned(run, 0, lambda method: method in left and not left.remove(method))
    assert status == "finished" and not left


def test_a_signal_before_the_first_round_leaves_a_checkpoint(world, tmp_path):
    run = align_run(world, tmp_path, recipe(("nft",), 2, 1, 0))
    executor = executor_of(run, 0, lambda method: False, Doing())
    executor.futures.stop_requested = True
    with pytest.raises(Stopped):
        executor.collect(0, 0, 0)
    alignment = Alignment(run, executor, lambda row, step: None)
    alignment.resume()
    assert (
        alignment.run_rounds() == "interrupted"
        and newest(run.out) == 0
        and (run.out / "checkpoint" / "step-0").is_dir()
    )


def test_ranks_of_a_context_group_learn_from_the_same_clips_made_once(world, tmp_path):
    made = recipe(("nft",), rounds=1, every=1, patience=0)
    both = dataclasses.replace(made, parallel=dataclasses.replace(made.parallel, context=RANKS))
    run, alone = align_run(world, tmp_path / "both", both), align_run(world, tmp_path / "alone", made)
    executor = executor_of(run, 0, lambda method: False, Doing())
    assert Alignment(run, executor, lambda row, step: None).run_rounds() == "finished"
    group = executor.ranks.group
    assert isinstance(group, Numbers)
    first, second = group.given
    assert first == second and first
    ids = [sample for *_, samples in first for sample in samples]
    assert executor.ledger.rows()[0]["samples"] == sorted(ids) and len(ids) == len(set(ids))
    assert len(ids) == aligned(alone, 0)[2][0]["clips"]
