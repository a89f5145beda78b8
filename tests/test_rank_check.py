"""`nava doctor --distributed`: two gloo ranks that answer, one that is slow, and ranks that do not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_processes

from experiments import rank_check
from experiments.rank_check import BROKEN, SLOW, RankCheck, RankReport, check_ranks, finish
from pretrain.files import read_json

ROW = {"mib": 1.0, "seconds": 0.1, "gb_s": 2.0, "bus_gb_s": 1.5}


def test_exit_codes_and_lines_in_closed_form():
    well = RankReport(ranks=2, backend="gloo", hosts=["a", "b"], all_reduce=[ROW])
    assert well.code == 0 and well.lines()[0] == "2 ranks on 2 machines answer (gloo)"
    assert "no bandwidth was expected" in well.lines()[-1]
    well.expect_gb_s = 1.5
    assert well.code == 0 and well.lines()[-1].startswith("as expected")
    well.expect_gb_s = 1.6
    assert well.code == SLOW and well.lines()[-1].startswith("slow: bus 1.50 GB/s of the 1.6 GB/s")
    broken = RankReport(ranks=4, broken=[1, 3], at="when the ranks met")
    assert broken.code == BROKEN
    assert "sets the connections up: 0.00 s" in well.lines()[1]
    assert RankReport(expect_gb_s=5.0).code == 0  # nothing was measured
    large = {"mib": 64.0, "seconds": 0.1, "gb_s": 200.0, "bus_gb_s": 180.0}
    mixed = RankReport(ranks=2, hosts=["a"], all_reduce=[large, ROW], expect_gb_s=100.0)
    assert mixed.code == 0 and "bus 180.00 GB/s" in mixed.lines()[-1]  # of the largest size, not the last
    mixed.wrong = {"64": [1]}
    assert mixed.code == BROKEN and mixed.lines()[-1].startswith(
        "broken: sums of 64 MiB came out wrong on rank 1"
    )
    assert broken.lines() == ["broken: rank 1, 3 of 4 did not answer when the ranks met"]


@pytest.mark.parametrize(
    "wrong", [{"patience_s": 0}, {"expect_gb_s": -1}, {"repeats": 0}, {"setup_s": 0}, {"sizes_mib": ()}]
)
def test_what_cannot_be_checked_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^doctor --distributed: [^\n]*$"):
        RankCheck(**wrong)


def _rank(rank: int, folder: Path, stops_at: str, stops: int, expect_gb_s: float, mend: str = "") -> int:
    def pause(step: str) -> None:
        if step == stops_at and rank == stops:
            time.sleep(10)
            os._exit(0)

    if "two backends" in mend:  # as on GPUs, where the default group is of nccl and gloo
        rank_check._backend = lambda device: "cuda:gloo,cpu:gloo"
    if "slow set-up" in mend:
        rank_check._first = lambda device: time.sleep(5.0) or 5.0
    if "no set-up" in mend:
        rank_check._first = lambda device: time.sleep(20.0) or 20.0
    if "wrong sums" in mend and rank == 1:
        sums = rank_check.dist.all_reduce

        def wrong(tensor: torch.Tensor) -> None:
            sums(tensor)
            if tensor.numel() == 2**18:
                tensor[7] += 1.0

        rank_check.dist.all_reduce = wrong
    options = RankCheck(
        patience_s=4.0,
        setup_s=7.0,
        sizes_mib=(0.25, 1.0),
        expect_gb_s=expect_gb_s,
        to=str(folder / "report.json"),
    )
    finish(check_ranks(options, pause), options, rank)
    return 0


def checked(
    folder: Path, stops_at: str = "", stops: int = 1, expect_gb_s: float = 0.0, mend: str = ""
) -> tuple[list[int], dict[str, Any]]:
    codes = run_processes(_rank, 2, folder, folder, stops_at, stops, expect_gb_s, mend, timeout_s=25.0)
    return codes, read_json(folder / "report.json", "")


@pytest.mark.distributed
def test_two_ranks_answer_and_the_bus_bandwidth_of_two_is_that_of_the_bytes(tmp_path):
    codes, found = checked(tmp_path)
    assert codes == [0, 0] and found["broken"] == [] and len(found["hosts"]) == 2
    assert [row["mib"] for row in found["all_reduce"]] == [0.25, 1.0]
    for row in found["all_reduce"]:
        assert row["bus_gb_s"] == pytest.approx(row["gb_s"]) and row["gb_s"] > 0


@pytest.mark.distributed
def test_a_rank_with_wrong_sums_is_named(tmp_path):
    codes, found = checked(tmp_path, mend="wrong sums")
    assert codes == [BROKEN, BROKEN] and found["wrong"] == {"1": [1]} and found["broken"] == []


@pytest.mark.distributed
def test_a_default_group_of_two_backends_is_checked_too(tmp_path):
    codes, found = checked(tmp_path, mend="two backends")
    assert codes == [0, 0], (tmp_path / "log.0").read_text()
    assert found["backend"] == "cuda:gloo,cpu:gloo" and found["first_s"] > 0
    assert not found["broken"] and not found["at"] and len(found["all_reduce"]) == 2


@pytest.mark.slow
@pytest.mark.distributed
def test_a_set_up_longer_than_the_patience_is_waited_for_and_one_beyond_its_limit_is_not(tmp_path):
    codes, found = checked(tmp_path, mend="two backends, slow set-up")
    assert codes == [0, 0] and found["first_s"] == 5.0
    codes, found = checked(tmp_path, mend="two backends, no set-up")
    assert codes[0] == BROKEN and found["broken"] == []
    assert found["at"] == "in step 'the first all-reduce', which all ranks began and none ended"


@pytest.mark.slow
@pytest.mark.distributed
def test_less_than_was_expected_is_exit_code_1(tmp_path):
    codes, found = checked(tmp_path, expect_gb_s=1e6)
    assert codes[0] == SLOW and RankReport(**found).lines()[-1].startswith("slow")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("step", ["joining", "barrier", "first", "1 MiB"])
def test_a_rank_that_stops_is_named_within_seconds_at_any_step(tmp_path, step):
    begin = time.monotonic()
    codes, found = checked(tmp_path, step)
    assert codes[0] == BROKEN and found["broken"] == [1], found
    assert time.monotonic() - begin < 25


@pytest.mark.distributed
def test_a_rank_that_never_comes_is_named(tmp_path):
    codes, found = checked(tmp_path, "meeting")
    assert codes[0] == BROKEN and (found["broken"], found["at"]) == ([1], "when the ranks met")


@pytest.mark.slow
@pytest.mark.distributed
def test_the_command_starts_ranks_here(tmp_path):
    command = [sys.executable, "-m", "experiments.cli", "doctor", "--distributed", "--nproc", "2"]
    done = subprocess.run(
        [*command, "--sizes-mib", "0.25", "--patience-s", "30", "--expect-gb-s", "1e9"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == SLOW, done.stderr
    assert "2 ranks on 1 machine answer (gloo)" in done.stdout
