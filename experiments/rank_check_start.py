"""Starts the ranks of `nava doctor --distributed` on this machine, or is one of them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

from experiments.rank_check import BROKEN, RankCheck, RankReport, check_ranks, finish
from pretrain.files import read_json, write_json
from pretrain.launch.alone import is_rank_of_torchrun
from pretrain.launch.torchrun import LOG, RESOLVED, SHUTDOWN_TIMEOUT, run_ranks

SHUTDOWN_S = 2  # for ranks that torchrun ends because one did not answer


def check(options: RankCheck, nproc: int) -> RankReport:
    """The report of `nproc` ranks of this machine; of a rank of torchrun it is that of its check, and ends
    it."""
    if is_rank_of_torchrun():
        finish(check_ranks(options), options, int(os.environ["RANK"]))
    with tempfile.TemporaryDirectory(prefix="nava-ranks-") as folder:
        out, report = Path(folder), Path(folder) / "report.json"
        write_json(out / RESOLVED, dataclasses.asdict(dataclasses.replace(options, to=str(report))))
        os.environ[SHUTDOWN_TIMEOUT] = str(SHUTDOWN_S)
        code = run_ranks("experiments.rank_check", out, nproc, 0, None)
        if report.is_file():
            return RankReport(**read_json(report, "run it again"))
        last = (out / LOG).read_text(errors="replace").strip().splitlines()[-1:]
        return RankReport(
            ranks=nproc, at=f"at all (torchrun ended with {code or BROKEN}: {''.join(last)[:200]})"
        )
