import dataclasses
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray_chaos
import torch
from chaos_comparison import TOLERANCE, Left, Verdict, compare, read
from hypothesis import given
from hypothesis import strategies as st
from ray_chaos import DRIVER, Moment, disturbed, draw, tiny_run, undisturbed
from safetensors.torch import save_file

TESTS = Path(__file__).parent


def left(**changes):
    """A finished run of two rounds."""
    curves = {
        0: {"held_out/reward/warm": 0.1},
        1: {"nft/loss": 1.0, "reward/warm": 0.2},
        2: {"nft/loss": 0.5, "reward/warm": 0.3},
    }
    fields = {
        "status": "finished",
        "rounds": 2,
        "curves": curves,
        "repeated_rows": 0,
        "samples": {1: (1, 2), 2: (3, 4)},
        "repeated_rounds": 0,
        "restarts": 0,
        "adapter": {"a": torch.ones(2, 2)},
        **changes,
    }
    return Left(**fields)


def test_a_run_that_lost_nothing_is_the_same():
    verdict = compare(left(restarts=3), left())
    assert verdict == Verdict(True, 0, 0, 0, 0, 0.0, 0.0) and verdict.same


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "interrupted"}, {"finished": False}),
        ({"rounds": 1}, {"finished": False}),
        (
            {"curves": {number: left().curves[number] for number in (0, 1)}},
            {"rounds_missing": 1, "curve": float("inf")},
        ),
        ({"samples": {1: (1, 2)}}, {"rounds_missing": 1, "samples_lost": 2}),
        ({"samples": {1: (1, 2), 2: (3,)}}, {"samples_lost": 1}),
        ({"samples": {1: (1, 2), 2: (3, 4, 4)}}, {"samples_doubled": 1}),
        ({"samples": {1: (1, 2), 2: (3, 5)}}, {"samples_lost": 1, "samples_doubled": 1}),
        (
            {"samples": {1: (1, 2), 2: (3, 4), 3: (5,)}, "curves": {**left().curves, 3: {}}},
            {"rounds_doubled": 1, "samples_doubled": 1},
        ),
        ({"repeated_rows": 1}, {"rounds_doubled": 1}),
        ({"repeated_rounds": 1}, {"rounds_doubled": 1}),
        (
            {"curves": {**left().curves, 2: {"nft/loss": 0.5, "reward/warm": 0.31}}},
            {"curve": pytest.approx(0.01)},
        ),
        ({"curves": {**left().curves, 2: {"nft/loss": 0.5}}}, {"curve": float("inf")}),
        ({"curves": {**left().curves, 2: {**left().curves[2], "grpo/loss": 1.0}}}, {"curve": float("inf")}),
        ({"adapter": {"a": torch.ones(2, 2) + 1e-3}}, {"adapter": pytest.approx(1e-3, rel=1e-3)}),
        (
            {"curves": {**left().curves, 2: {"nft/loss": float("nan"), "reward/warm": 0.3}}},
            {"curve": float("inf")},
        ),
        ({"adapter": {"a": torch.full((2, 2), float("nan"))}}, {"adapter": float("inf")}),
        ({"adapter": {"b": torch.ones(2, 2)}}, {"adapter": float("inf")}),
    ],
)
def test_what_was_lost_or_doubled_is_counted(changes, said):
    verdict = compare(left(**changes), left())
    none = dataclasses.asdict(Verdict(True, 0, 0, 0, 0, 0.0, 0.0))
    assert dataclasses.asdict(verdict) == {**none, **said} and not verdict.same


def test_rounding_is_no_difference():
    near = {**left().curves, 2: {"nft/loss": 0.5 + TOLERANCE / 2, "reward/warm": 0.3}}
    assert compare(left(curves=near, adapter={"a": torch.ones(2, 2) - TOLERANCE / 2}), left()).same


def test_reading_a_folder_counts_repeated_rows(tmp_path):
    (tmp_path / "adapter").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "state.json").write_text(json.dumps({"status": "finished", "step": 1}))
    row = {"step": 1, "nft/loss": 1.0, "reward/warm": 0.2, "seconds/rollout": 3.0, "grad_norm": 2.0}
    (tmp_path / "metrics.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    round_row = {"round": 1, "samples": [5, 6], "restarts": 2}
    (tmp_path / "rounds.jsonl").write_text(3 * (json.dumps(round_row) + "\n"))
    found = read(tmp_path)
    assert (found.repeated_rows, found.repeated_rounds, found.restarts) == (1, 2, 6)
    assert found.curves == {1: {"nft/loss": 1.0, "reward/warm": 0.2, "grad_norm": 2.0}} and found.samples == {
        1: (5, 6)
    }


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_the_driver_is_killed_last_and_within_the_rounds(seed, rounds):
    moments = draw(random.Random(seed), rounds)
    assert set(moments) == {"rollout", "reward", DRIVER}
    places = [moment.rounds + moment.part for moment in moments.values()]
    assert places == sorted(places) and list(moments)[-1] == DRIVER and places[0] >= 0 and places[-1] < rounds


@pytest.mark.parametrize(("code", "killed"), [(2, 1), (0, 1), (2, 0)])
def test_a_driver_that_falls_with_its_worker_is_no_draw_that_came_too_late(
    monkeypatch, tmp_path, code, killed
):
    class Fallen:
        def __init__(self, run, ranks, staleness) -> None:
            self.process, self.victim = (
                SimpleNamespace(returncode=code),
                SimpleNamespace(send_signal=lambda number: None),
            )

        def wait_for(self, moment, round_s, victim):
            return self.victim if moment.rounds < killed else None

        def processes(self) -> None: ...

        def end(self) -> int:
            return 0

    monkeypatch.setattr(ray_chaos, "Driver", Fallen)
    moments = {"rollout": Moment(0, 0.0), "reward": Moment(1, 0.0), DRIVER: Moment(2, 0.0)}
    run: Any = SimpleNamespace(out=tmp_path)
    if code and killed:
        with pytest.raises(ValueError, match="did not outlive the loss of rollout"):
            disturbed(run, moments, left(), 1.0, 1, 0)
    else:
        assert disturbed(run, moments, left(), 1.0, 1, 0) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_and_driver_are_killed_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(TESTS.parent)
    pytest.importorskip("ray")
    whole, round_s = undisturbed(
        tiny_run(tmp_path / "world", tmp_path / "whole", 1, TESTS), ranks=1, staleness=0
    )
    assert whole.rounds == 2 and all(whole.samples.values())
    moments = {"reward": Moment(0, 0.5), "rollout": Moment(1, 0.2), DRIVER: Moment(1, 0.9)}
    trial = None
    for attempt in range(
        3
    ):  # on a machine that suddenly is quicker, the run ends before the driver is killed
        trial = trial or disturbed(
            tiny_run(tmp_path / "world", tmp_path / f"trial-{attempt}", 1, TESTS),
            moments,
            whole,
            round_s,
            1,
            0,
        )
    assert trial is not None and trial.verdict.same and trial.left_behind == 0
