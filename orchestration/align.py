"""Align a model on Ray: checks, the driver and its result.

Same run as on local ranks, with another executor.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from finetune.align_run import AlignRun
from finetune.checkpoint import FOLDER
from finetune.executor import RestoredFromCheckpoint
from finetune.launch import locked_run, progress_of
from finetune.loop import Alignment
from finetune.prompts import read_prompt_set, report_left_out
from finetune.run_log import RunLog
from orchestration.cluster import LOCAL, Group, connected, places, reward_workers, rollout_workers
from orchestration.config import RayConfig
from orchestration.executor import RayExecutor, Workforce
from orchestration.futures import Futures
from orchestration.round import WorkerPool
from pretrain.launch.launch import StageResult
from pretrain.progress import StageProgress
from pretrain.titan.checkpoints import is_full, save_error

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# (options of a scorer, some of its rewards) -> options for these
Cut = Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, Any]]


def align_on_ray(
    run: AlignRun,
    ranks: int,
    config: RayConfig,
    cut: Cut,
    address: str = LOCAL,
    insecure: bool = False,
) -> StageResult:
    """Align into run.out, resuming from the newest checkpoint.

    Writes what `finetune.launch.align_model` writes, plus rounds.jsonl and published/. A finished run is
    returned immediately. cut: options of run.scorer for a pool's rewards. address: of a Ray cluster whose
    nodes see all paths of the run; "local" = an embedded one that ends with this process. insecure: a
    cluster without a token is taken. Raises ValueError, FileNotFoundError or OSError in one line.
    """
    run = dataclasses.replace(run, staleness=config.staleness)
    run.config.check_ranks(ranks)
    pools = config.rewards_of(list(run.config.rubric.routes()))
    prompts = read_prompt_set(run.prompts, run.config, run.chosen, run.held_out)
    report_left_out(prompts, run.prompts)
    with locked_run(run) as done:
        if done:
            return done
        progress = progress_of(run)
        with (
            _signals_given_back(),
            connected(address, config, ranks, insecure),
            progress,
            _on_signal(signal.default_int_handler),
        ):
            force, futures = _workforce(run, ranks, config, pools, cut, address), Futures()
            try:
                executor = RayExecutor(
                    run,
                    prompts,
                    ranks,
                    config.staleness,
                    force,
                    futures,
                    config.max_unscored,
                    config.trainers.max_restarts,
                )
                for future in force.ready:
                    futures.result(future)
                with _on_signal(lambda *_: setattr(futures, "stop_requested", True)):
                    return _drive(run, executor, progress)
            except KeyboardInterrupt:
                # loading takes minutes, and cluster resources may never become free: interruptible until here
                raise KeyboardInterrupt("stopped before its first round; the same command goes on") from None
            except OSError as error:
                raise save_error(error, run.out / FOLDER) if is_full(error) else error from error


def _drive(run: AlignRun, executor: RayExecutor, progress: StageProgress) -> StageResult:
    run_log = RunLog(run, executor.take_written)

    def log(row: dict[str, Any], step: int) -> None:
        run_log.log(row, step)
        progress.show({"step": step, **row})

    alignment = Alignment(run, executor, log, run_log.begin)
    alignment.resume()
    status, model_id = alignment.run_rounds(), ""
    while status == "finished" and not model_id:
        try:
            model_id = executor.export(alignment.progress)
        except RestoredFromCheckpoint:
            alignment.resume()
    run_log.end(status, alignment.progress.rounds, model_id, executor.ranks.base_id)
    model = run.out / "model" if status == "finished" else None
    return StageResult(status, alignment.progress.rounds, model, model_id)


def _workforce(
    run: AlignRun, ranks: int, config: RayConfig, pools: Mapping[str, Sequence[str]], cut: Cut, address: str
) -> Workforce:
    given = places(config, ranks, address)
    name, options = run.scorer
    scorers = {
        pool: reward_workers(pool, (name, cut(options, rewards)), config.pools[pool], given[f"pool {pool}"])
        for pool, rewards in pools.items()
    }
    rollers = rollout_workers(run, config.rollout, given["rollout"])

    def rollout(weights: Callable[[Any], Any]) -> WorkerPool[Any, Any, Any]:
        return WorkerPool(
            "rollout",
            rollers,
            lambda worker, task: worker.roll_out.remote(task, [weights(task)]),
            config.rollout.in_flight,
        )

    return Workforce(
        build=lambda: Group(run, ranks, given["trainers"]),
        rollout=rollout,
        scorers={
            pool: WorkerPool(
                pool, workers, lambda worker, both: worker.score.remote(*both), config.pools[pool].in_flight
            )
            for pool, workers in scorers.items()
        },
        writer=next(iter(scorers.values()))[0],
        ready=[worker.ready.remote() for workers in (rollers, *scorers.values()) for worker in workers],
    )


@contextmanager
def _on_signal(do: Callable[[int, Any], Any]) -> Iterator[None]:
    """Call `do` on SIGTERM and Ctrl-C.

    Before the first round this ends the run; later the current round is dropped and a checkpoint written.
    """
    with _signals_given_back():
        for number in SIGNALS:
            signal.signal(number, do)
        yield


@contextmanager
def _signals_given_back() -> Iterator[None]:
    """Restore signal handlers on exit; `ray.init` installs its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
