"""Entry point of each torchrun rank: `python -m finetune.run out/align/resolved.json`."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from finetune.align_run import AlignRun
from finetune.checkpoint import FOLDER
from finetune.local_executor import build_executor
from finetune.loop import Alignment
from finetune.room import align_ways
from finetune.run_log import RunLog
from pretrain.launch.rank import begin
from pretrain.launch.torchrun import report
from pretrain.model.shortage import no_room
from pretrain.titan.checkpoints import is_full, remove_incomplete, save_error
from pretrain.titan.ranks import join
from pretrain.titan.telemetry import MemoryPeaks

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def align(run: AlignRun) -> str:
    """Align, or resume, on this rank; returns "finished" or "interrupted".

    Raises ValueError for unusable inputs, a reward that fails or a policy that diverges, OSError when
    something cannot be written.
    """
    ranks = join()
    run.config.check_ranks(ranks.world_size)
    if ranks.rank == 0:
        remove_incomplete(run.out / FOLDER)
    dist.barrier()
    executor = build_executor(run, ranks)
    for number in SIGNALS:
        signal.signal(number, lambda *_: executor.scoring.stop())
    run_log = RunLog(run, executor.take_written) if ranks.rank == 0 else None
    memory = MemoryPeaks(ranks.device)
    alignment = (
        Alignment(
            run,
            executor,
            lambda row, step: run_log.log({**row, **memory.row()} if row else row, step),
            run_log.begin,
        )
        if run_log
        else Alignment(run, executor, lambda row, step: None)
    )
    alignment.resume()
    try:
        status = alignment.run_rounds()
    finally:
        executor.close()
    model_id = executor.export(alignment.progress) if status == "finished" else ""
    if run_log:
        run_log.end(
            status,
            alignment.progress.rounds,
            model_id,
            str(executor.learner.described.facts["checkpoint_id"]),
        )
    return status


def main(path: Path) -> int:
    """Exit code of this rank: 0 finished or interrupted, 2 with one line in error.txt."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    run = AlignRun.load(path)
    try:
        align(run)
    except (ValueError, OSError) as error:
        report(save_error(error, run.out / FOLDER) if is_full(error) else error, run.out)
        # exit without destroying the process group: other ranks may be inside a collective; torchrun ends
        # them
        os._exit(2)
    except torch.OutOfMemoryError as error:
        said = no_room(error, align_ways(run), f"rank {os.environ['RANK']}: ")
        report(said.with_traceback(error.__traceback__), run.out)
        os._exit(2)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    begin(Path(sys.argv[1]).parent)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main(Path(sys.argv[1])))
