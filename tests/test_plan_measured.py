"""What a plan says is what a step holds: peaks of small models' steps on the CPU, to 10 %."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import planned_memory
from experiments.benchmarks.planned_memory import CASES, LIMIT, MEASURES, MemoryCase

KEPT = Path(__file__).parent.parent / "docs" / "planned_memory.json"


def is_cheap(case: MemoryCase) -> bool:
    """One of each work, and both of what counts most for memory."""
    if case.work in ("rollout", "generate"):
        return case.flavor == "debug" or (case.base == "int8" and not case.guided)
    both_ends = case.checkpointing != "selective" and case.micro_batches == 2
    return case.flavor == "debug" and both_ends and (case.work == "train" or case.base == "int8")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[] if is_cheap(case) else pytest.mark.slow) for case in CASES],
)
def test_a_plan_is_what_a_step_holds(case: MemoryCase) -> None:
    planned = sum(case.planned().values())
    assert MEASURES[case.work](case) == pytest.approx(planned, rel=LIMIT)


def test_the_kept_measurement_is_of_these_cases_and_this_plan() -> None:
    kept = json.loads(KEPT.read_text())["cases"]
    assert list(kept) == [case.name for case in CASES]
    for case in CASES:
        row = kept[case.name]
        assert row["planned_mib"] == pytest.approx(sum(case.planned().values()) / 2**20, rel=0.001), case.name
        assert abs(row["measured_over_planned"] - 1) <= LIMIT


def test_the_command_says_what_is_off(monkeypatch, capsys, tmp_path):
    case = next(case for case in CASES if case.work == "generate" and not case.guided)
    monkeypatch.setattr(planned_memory, "CASES", (case,))
    monkeypatch.setitem(MEASURES, "generate", lambda case: 2 * sum(case.planned().values()))
    file = tmp_path / "found.json"
    monkeypatch.setattr("sys.argv", ["planned_memory", "--out", str(file)])
    assert planned_memory.main() == 1
    assert f"more than 10% from the plan: {case.name}" in capsys.readouterr().out
    assert json.loads(file.read_text())["cases"][case.name]["measured_over_planned"] == 2.0
