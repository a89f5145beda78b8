"""Entry point of a torchrun rank: `python -m pretrain.titan.run out/stage1/resolved.json` trains a stage."""

from __future__ import annotations

import math
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.tools.logging import init_logger, logger

from pretrain.config import one_line
from pretrain.data.stream.sample_set import check_sets_split, open_sets
from pretrain.data.stream.shard_cache import ShardCache
from pretrain.files import write_json
from pretrain.launch.rank import begin
from pretrain.launch.stage_run import StageRun
from pretrain.launch.torchrun import ERROR, METRICS, NOT_AGAIN, STATE, report
from pretrain.model.flavors import flavor
from pretrain.model.shortage import no_room, part, part_of
from pretrain.titan.checkpoints import is_full, remove_incomplete, save_error
from pretrain.titan.lost_peers import of_lost_peers
from pretrain.titan.room import training_ways
from pretrain.titan.seen import clips_seen
from pretrain.titan.trainer import PretrainTrainer
from pretrain.titan.validate import Validator
from pretrain.titan.weights import check_finite
from pretrain.tracking import JsonlTracker, Trackers, build_trackers

MODEL, FIRST_STEP = "the model and its optimizer", "the first step"


def train_stage(run: StageRun, trainer_type: type[PretrainTrainer] = PretrainTrainer) -> str:
    """Train (or go on training) `run` on this rank; returns "finished" or "interrupted".

    Raises ValueError for unusable data or a run that diverges, OSError when a checkpoint or the export cannot
    be written.
    """
    rank = int(os.environ["RANK"])
    config = run.config
    cache = ShardCache(max_bytes=int(config.cache_gb * 2**30))
    stage = config.stage(run.stage)
    sets = open_sets(
        run.latents,
        stage,
        run.codec_id or None,
        config.mix_lengths,
        shuffle_shards=config.shuffle_shards,
        cache=cache,
        places=run.places,
    )
    check_sets_split(sets, flavor(config.flavor).patch_size, config.parallel.context)
    output = _Output(run)
    if rank == 0:
        remove_incomplete(run.checkpoints)
    with part(MODEL):
        trainer = trainer_type(run, sets, output.log)
    trainer.stop_on(signal.SIGTERM, signal.SIGINT)
    with part("the state that is resumed from"):
        resumed = trainer.resume()
    if rank == 0:
        output.begin(resumed)
        trainer.clips_seen = clips_seen(run, resumed, trainer.clips_of_step)
        _state(run, "running", resumed)
    validator = Validator(run, rank, int(os.environ["WORLD_SIZE"]), trainer.device)

    last_losses: dict[str, float] = {}

    def after_step(step: int) -> None:
        due = config.validate_every and step % config.validate_every == 0
        if due or trainer.finished:
            with part("a validation"):
                last_losses.update(validator(trainer.model, trainer.ema, every_task=trainer.finished))
            output.log(dict(last_losses), step)
        output.files(trainer.after_step(step))

    if config.checkpoint.create_seed_checkpoint:
        trainer.write_seed()
    elif not resumed:
        output.files(trainer.after_step(0))
    with part(lambda: FIRST_STEP if trainer.step <= resumed + 1 else f"step {trainer.step:,}"):
        trainer.train(after_step)
    status = "finished" if trainer.finished else "interrupted"
    model_id = _exported(trainer, run, rank, last_losses) if trainer.finished else ""
    if rank == 0:
        _state(run, status, trainer.step, model_id)
        output.end(status, model_id)
    trainer.close()
    return status


class _Output:
    """metrics.jsonl and the trackers of the rank that began it; of the others nothing."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.trackers: Trackers | None = None

    def begin(self, resumed: int) -> None:
        first = JsonlTracker(self.run.out / METRICS, resumed)
        self.trackers = Trackers(first, build_trackers(self.run.trackers, resumed))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if metrics and self.trackers:
            self.trackers.log_metrics(metrics, step)

    def files(self, files: Iterable[tuple[Path, str]]) -> None:
        """With the folder that each one gets there."""
        if self.trackers:
            for path, folder in files:
                self.trackers.log_artifact(str(path), folder)

    def end(self, status: str, model_id: str) -> None:
        assert self.trackers
        parent = self.run.identity()["parent"]
        self.trackers.set_tags({"status": status, "model_id": model_id, "parent_model_id": parent})
        self.trackers.log_artifact(str(self.run.out / METRICS))
        self.trackers.close()


def _exported(trainer: PretrainTrainer, run: StageRun, rank: int, losses: Mapping[str, float]) -> str:
    """The id of the model. Raises ValueError where the stage did not end well, by weights or validation."""
    trainer.guard.check_end(trainer.step)
    check_finite(trainer.model, trainer.ema)
    if broken := [name for name, loss in losses.items() if not math.isfinite(loss)]:
        raise ValueError(
            f"{broken[0]}: {losses[broken[0]]:g} at the end of the stage; the model is not exported: train "
            "again with a lower lr"
        )
    try:
        return trainer.export(rank)
    except (OSError, SafetensorError) as error:  # the latter also where the disk is full
        raise save_error(error, run.checkpoints) from error


def _state(run: StageRun, status: str, step: int, model_id: str = "") -> None:
    stage = run.config.stage(run.stage)
    write_json(
        run.out / STATE,
        {"status": status, "stage": run.stage, "step": step, "steps": stage.steps, "model_id": model_id},
    )


def _no_room(error: torch.OutOfMemoryError, run: StageRun) -> ValueError:
    """In one line, with the traceback for the log; one that no restart would help says so."""
    ways = training_ways(run.config, run.label.partition("_")[0], int(os.environ["WORLD_SIZE"]))
    again = [] if part_of(error) not in (MODEL, FIRST_STEP) else [NOT_AGAIN]
    said = no_room(error, ways, f"rank {os.environ['RANK']}: ", again)
    return said.with_traceback(error.__traceback__)


def main(path: Path) -> int:
    """Exit code: 0 finished or interrupted, 2 with one line in error.txt, 3 where another rank failed."""
    return run_rank(StageRun.load(path))


def run_rank(run: StageRun, trainer_type: type[PretrainTrainer] = PretrainTrainer) -> int:
    """The work of `main`, for a trainer of another kind too."""
    # the outputs of our blocks are views that are not changed in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    init_logger()
    # of the attempt before an elastic restart
    (run.out / f"{ERROR}.{os.environ['RANK']}").unlink(missing_ok=True)
    try:
        logger.info(f"stage {run.stage} is {train_stage(run, trainer_type)}")
    except (ValueError, OSError) as error:
        report(save_error(error, run.checkpoints) if is_full(error) else error, run.out)
        # no farewell to the other ranks: they may be inside a collective, and torchrun ends them
        os._exit(2)
    except torch.OutOfMemoryError as error:
        report(_no_room(error, run), run.out)
        os._exit(2)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        if not of_lost_peers(error):
            raise
        logger.error(f"lost another rank: {one_line(error, 300)}")
        os._exit(3)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    begin(Path(sys.argv[1]).parent)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main(Path(sys.argv[1])))
