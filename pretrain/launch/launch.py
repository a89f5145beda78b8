"""Trains a stage on local ranks: checks before, torchrun, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.stream.sample_set import check_sets
from pretrain.launch.continuing import TrainingRun, is_finished
from pretrain.launch.nodes import Nodes
from pretrain.launch.rank import PATIENCE_S
from pretrain.launch.stage_run import StageRun, check_checkpoints, check_parent, check_run_folder
from pretrain.launch.states_writer import wait_for_writer, writing_states
from pretrain.launch.torchrun import (
    ALONE,
    IDENTITY,
    RESOLVED,
    STATE,
    check_port,
    failure,
    log_file,
    read_state,
    run_ranks,
)
from pretrain.launch.training_lock import alone
from pretrain.progress import StageProgress
from pretrain.recipe import PretrainConfig
from pretrain.storage import move_aside

PRETRAINING = "pretrain.titan.run"  # what each of its ranks runs


@dataclass(frozen=True)
class StageResult:
    """End of a stage: status "finished" or "interrupted" (run again to resume), step, exported model."""

    status: str
    step: int
    model: Path | None
    model_id: str


def pretrain_stage(
    config: PretrainConfig,
    stage: str,
    latents: Path,
    out: Path,
    *,
    codec_id: str = "",
    init_from: Path | None = None,
    nproc: int = 1,
    port: int = 0,
    trackers: Mapping[str, Mapping[str, Any]] | None = None,
    restart: bool = False,
    nodes: Nodes = ALONE,
) -> StageResult:
    """Train `stage` into `out` on `nproc` ranks of each node, going on from the newest checkpoint there.

    Arguments but `restart` as of `train_run`. restart: move aside what is in `out` and start over.
    """
    config.stage(stage)
    run = StageRun(
        config=config,
        stage=stage,
        latents=latents.absolute(),
        out=out.absolute(),
        codec_id=codec_id,
        init_from=init_from.absolute() if init_from else None,
        trackers=trackers or {},
    )
    return train_run(run, nproc=nproc, port=port, restart=restart, nodes=nodes)


def train_run(
    run: StageRun,
    *,
    nproc: int = 1,
    port: int = 0,
    restart: bool = False,
    nodes: Nodes = ALONE,
    module: str = PRETRAINING,
    describe: Callable[[Mapping[str, Any]], str] | None = None,
) -> StageResult:
    """Train a stage on `nproc` ranks of each node, going on from the newest checkpoint in its folder.

    port: torchrun's rendezvous port on a single node, 0 = any free one. nodes: the first of several calls
    this, the others `join_stage`. restart: move aside what is there. A finished stage is returned at once,
    one that is asked for more steps goes on. module: what each rank runs. describe: of a log row, for the
    terminal. Another command at work in the folder is waited for as long as it may take to end when it was
    killed, and so is another training that has the same place for its states (`writing_states`). Raises
    ValueError, FileNotFoundError or OSError in one line; out/log.txt has the rest.
    """
    config, stage = run.config, run.stage
    config.local_batch(nproc * nodes.count)
    check_parent(run)
    check_sets(run.latents, config.stage(stage), run.places)
    if port and nodes.count == 1:
        check_port(port)
    with alone(run.out, patience_s=PATIENCE_S):
        if restart:
            set_aside(run)
        with writing_states(run.checkpoints, run.out):
            check_checkpoints(run)
            check_run_folder(run)
            if done := finished(run.out):
                return done
            run.save()
            progress = StageProgress(stage, config.stage(stage).steps, describe)
            code = run_ranks(module, run.out, nproc, port, progress, nodes)
            return outcome(run.out, code)


TRAINING = (
    IDENTITY,
    RESOLVED,
    STATE,
    "metrics.jsonl",
    "log.txt",
    "model",
    "checkpoint",
)  # what marks a folder


def set_aside(run: TrainingRun) -> None:
    """Move the folder of a training, and its states where they are elsewhere, to the trash.

    Raises ValueError where the folder holds something else.
    """
    if (
        run.out.is_dir()
        and any(run.out.iterdir())
        and not any((run.out / name).exists() for name in TRAINING)
    ):
        raise ValueError(
            f"{run.out}: holds no training, so it is not moved to make room for one; give another folder"
        )
    set_states_aside(run)
    move_aside(run.out, run.trash, run.label)


def set_states_aside(run: TrainingRun) -> None:
    """Move the states of a training to the trash where they are not in its folder.

    Raises ValueError where another training writes its states there.
    """
    if run.checkpoints.parent != run.out:
        wait_for_writer(run.checkpoints, run.out)
        move_aside(run.checkpoints, name=f"{run.label}-checkpoint")


def join_stage(out: Path, nproc: int, nodes: Nodes, steps: int = 0, module: str = PRETRAINING) -> StageResult:
    """Run `nproc` ranks of the stage that node 0 trains into `out`, a shared folder; returns the result.

    A stage that has finished `steps` steps is returned at once. module: as of `train_run`. Raises the ranks'
    error where they failed.
    """
    if (done := finished(out)) and done.step >= steps:
        return done
    out.mkdir(parents=True, exist_ok=True)
    code = run_ranks(module, out.absolute(), nproc, 0, None, nodes)
    return outcome(out, code, log_file(out, nodes))


def finished(out: Path) -> StageResult | None:
    """What a run folder holds, where it is done."""
    state = read_state(out)
    return _result(out, state) if is_finished(out, state) else None


def outcome(out: Path, code: int, log: Path | None = None) -> StageResult:
    """How the ranks ended. Raises their error where they failed."""
    state = read_state(out)
    if state and state["status"] in ("finished", "interrupted"):
        return _result(out, state)
    raise failure(out, code, log)


def _result(out: Path, state: Mapping[str, Any]) -> StageResult:
    model = out / "model" if state["status"] == "finished" else None
    return StageResult(state["status"], int(state["step"]), model, state["model_id"])
