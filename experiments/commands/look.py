"""Verbs that inspect: a machine, a prompt file, a lineage, the runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.commands.options import JsonFlag
from experiments.layout import Layout
from experiments.runs.origin import spool_of

FOUND_SOMETHING = 1
FLUSH_PATIENCE_S = 60.0


def doctor(
    as_json: JsonFlag = False,
    security: Annotated[bool, tyro.conf.arg(help="check modes of secrets, Ray, ports and services")] = False,
    out: Path = Path("out"),
    distributed: Annotated[bool, tyro.conf.arg(help="check the ranks of a training instead")] = False,
    nproc: Annotated[int, tyro.conf.arg(help="ranks of --distributed here; 0 = one per GPU, or two")] = 0,
    expect_gb_s: Annotated[
        float, tyro.conf.arg(help="bus bandwidth, GB/s, that the largest all-reduce must reach; 0 = any")
    ] = 0.0,
    patience_s: Annotated[
        float, tyro.conf.arg(help="seconds after which a rank that does not answer is broken")
    ] = 10.0,
    setup_s: Annotated[
        float, tyro.conf.arg(help="seconds that the first all-reduce may take, in which NCCL is set up")
    ] = 180.0,
    sizes_mib: Annotated[tuple[float, ...], tyro.conf.arg(help="of the tensors that are summed, in MiB")] = (
        0.0625,
        1.0,
        16.0,
        64.0,
    ),
) -> int:
    """Print what this machine has and what is missing; exit code 1 if a required package is missing.

    --security looks at a running set-up instead: who can read its tokens, Ray's authentication, addresses
    that are listened at, limits of the services that run here, logins in MLFLOW_TRACKING_URI, the umask. Exit
    code 1 where something is open to others.

    --distributed starts ranks as a training does and names one that does not answer after --patience-s, long
    before a collective's timeout; the first all-reduce, in which NCCL is set up, may take --setup-s; then
    all-reduce is measured by size. Exit code 3 where a rank is broken, 1 where the largest size is slower
    than --expect-gb-s. On several machines start it as their ranks:
      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 \\
        -m experiments.cli doctor --distributed --expect-gb-s 100
    """
    if distributed:
        options = {"patience_s": patience_s, "setup_s": setup_s, "sizes_mib": sizes_mib}
        return _doctor_distributed(nproc, {**options, "expect_gb_s": expect_gb_s}, as_json)
    if security:
        return _doctor_security(out, as_json)
    from experiments.doctor import examine, show

    report = examine()
    _print_json(report) if as_json else show(report)
    return FOUND_SOMETHING if report["missing"] else 0


def _doctor_distributed(nproc: int, given: dict[str, Any], as_json: bool) -> int:
    import dataclasses

    from experiments.job import StageJob
    from experiments.rank_check import RankCheck
    from experiments.rank_check_start import check

    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    report = check(RankCheck(**given), StageJob(recipe=None, nproc=nproc).ranks)
    _print_json(dataclasses.asdict(report)) if as_json else print("\n".join(report.lines()))
    return report.code


def _doctor_security(out: Path, as_json: bool) -> int:
    from experiments.security_check import check_security, report, show

    found = check_security(out)
    _print_json(report(found)) if as_json else show(found)
    return FOUND_SOMETHING if any(one.level == "open" for one in found) else 0


def prompt_check(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    files: bool = False,
    codec: Path = Path("out/codec"),
    as_json: JsonFlag = False,
) -> int:
    """Check the syntax of a prompts JSONL file; with --files also that the images and voices it names exist.

    Exit code 2 when a row is wrong: speech marks that are not exactly <S> and <E>, empty spans, unknown or
    doubled keys, names unfit for files. Words that the mini was never trained on are warnings, unless --codec
    is one of published weights. With --json errors and warnings are in the output.
    """
    from experiments.prompt_words import print_warnings, word_warnings
    from pretrain.prompt import check_prompts

    found = check_prompts(file, files)
    warnings = word_warnings(file, codec)
    if as_json:
        _print_json({**found, "warnings": warnings})
    else:
        print_warnings(file, warnings)
        for error in found["errors"]:
            print(f"{file}:{error['line']} {error['field']}: {error['message']}", file=sys.stderr)
        print(
            f"{found['rows']} rows, {found['spans']} spans, {found['references']} references, "
            f"{len(found['errors'])} errors"
        )
    return 2 if found["errors"] else 0


def lineage(
    target: Annotated[str, tyro.conf.Positional],
    /,
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """Trace a clip, a checkpoint or model folder, any file of the pipeline, or a run back to data, code and
    parent runs.

    A run is named by its key (folder in out/tracking) or its MLflow id.
    """
    from experiments.runs.lineage import show, trace

    found = trace(target, Layout(out=out), Path())
    _print_json(found) if as_json else show(found)


def tracking_flush(out: Path = Path("out"), let_go: str = "") -> int:
    """Send every pending run of OUT/tracking to MLflow (MLFLOW_TRACKING_URI, else mlflow.db here).

    Prints each run that could not be sent whole and why; the exit code is 1 where there is one. Everything
    that is sent stays sent: a later call goes on from there. --let-go KEY gives up the rest of a run that
    cannot be sent, such as one that was deleted in MLflow; its events stay in OUT/tracking.
    """
    from filelock import Timeout

    from experiments.runs.sender import (
        Unreachable,
        flush,
        give_up,
        sender_lock,
        silent_elsewhere,
        store_uri,
        unsent,
        wait_while_it_sends,
    )

    spool, root = spool_of(Layout(out=out), Path()), Path()
    if not spool.is_dir():
        raise FileNotFoundError(f"{spool}: no runs here; train something first or give --out")
    why = ""
    try:
        with sender_lock(spool).acquire(timeout=1):
            if let_go:
                print(f"{let_go}: {give_up(spool, root, let_go)} events given up; they stay in {spool}")
            flush(spool, root)
    except Timeout:  # the process beside a running training sends as well
        if let_go:
            busy = f"--let-go: another process sends {spool}; call this again once it has ended"
            raise ValueError(busy) from None
        print(f"another process sends {spool}; waiting for it", file=sys.stderr)
        wait_while_it_sends(spool, root, FLUSH_PATIENCE_S)
    except Unreachable as error:
        why = str(error)
    for key, silent in silent_elsewhere(spool):
        print(f"{key}: {silent}", file=sys.stderr)
    left = unsent(spool, root)
    if not left:
        print(f"{store_uri(root)}: everything is sent")
        return 0
    for run in left:
        print(f"{run.key}: {run.events} events not sent: {run.problem or why or 'it waits'}", file=sys.stderr)
    print(f"{store_uri(root)}: {len(left)} runs are not sent whole" + (f" ({why})" if why else ""))
    return FOUND_SOMETHING


def ui(port: int = 5000) -> int:
    """Serve MLflow's user interface for the runs of this repository until Ctrl-C.

    Where MLFLOW_TRACKING_URI names a server, its address is printed instead.
    """
    from experiments.runs.ui import serve_ui

    return serve_ui(port, Path())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))
