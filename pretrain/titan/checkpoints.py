"""torchtitan's checkpoint manager with local or remote states, retention and one-line errors."""

from __future__ import annotations

import errno
import re
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torchtitan.components.checkpoint import (
    LR_SCHEDULER,
    OPTIMIZER,
    AsyncMode,
    CheckpointManager,
    ModelWrapper,
)
from torchtitan.tools.logging import logger

from pretrain.config import one_line
from pretrain.launch.states import METADATA, complete_steps, kept_steps, step_folders
from pretrain.recipe import CheckpointConfig
from pretrain.storage import is_file, is_remote, list_folder, remove_files
from pretrain.titan.checkpoint_times import CheckpointTimes
from pretrain.titan.lost_peers import of_lost_peers
from pretrain.titan.optimizer_states import OptimizerMoments, ScheduleSteps
from pretrain.titan.safe_dcp import SafeReader, load_states
from pretrain.titan.store_dcp import StoreReader, StoreWriter

_STATE = r"(?:__\d+_\d+\.distcp|(?:__\d+)?\.metadata)"
# of DCP's writers (also through `pretrain.storage`), half-written ones among them
_STATES = re.compile(rf"{_STATE}(?:\.tmp)?|\.{_STATE}\.\d+\.tmp")


class TrainedWeights(ModelWrapper):
    """The model's state without its frozen weights, which come from where they came from at the start."""

    def _get_state_dict(self) -> dict[str, Any]:
        options = StateDictOptions(ignore_frozen_params=True)
        states = [get_model_state_dict(part, options=options) for part in self.model]
        return {name: value for state in states for name, value in state.items()}


class Checkpoints(CheckpointManager):
    """Saves to and loads from `place`/step-N. `newest` is the last step known to be complete, 0 = none."""

    def __init__(self, place: Path, config: CheckpointConfig, **parts: Any) -> None:
        super().__init__(base_folder=str(place), sd_adapter=None, **parts)
        self.states["model"] = TrainedWeights(parts["model_parts"])
        self.states[OPTIMIZER] = OptimizerMoments(parts["optimizers"])
        self.states[LR_SCHEDULER] = ScheduleSteps(parts["lr_schedulers"])
        self.place, self.config = place, config
        # pending: being written while training goes on; a later save waits for it
        self.newest = self.pending = 0
        self.times = CheckpointTimes()

    @torch.no_grad()
    def load(self, step: int = -1) -> bool:
        """The newest complete state, if any: weights, moments and position; settings stay as configured.

        Raises OSError where the place cannot be read.
        """
        steps = complete_steps(self.place)
        if not steps:
            return False
        self.newest = max(steps)
        logger.info(f"loading the checkpoint of step {self.newest} from {self.place}")
        self.dcp_load(
            self._states_to_load(False),
            self._create_checkpoint_id(self.newest),
            from_hf=False,
            from_quantized=False,
        )
        return True

    def save(self, curr_step: int, last_step: bool = False) -> None:
        """Called by all ranks. Raises a one-line OSError if the state cannot be written; older ones stay."""
        try:
            with self.times.stopped():
                super().save(curr_step, last_step)
        except (Exception, CheckpointException) as error:  # the latter is a BaseException
            if of_lost_peers(error):
                raise
            reported = save_error(error, self.place, self.newest)
            if dist.get_rank() == 0:
                with suppress(OSError):  # the next run removes them
                    remove_incomplete(self.place)
            raise reported from error
        if not self._should_save(curr_step, last_step):
            return
        pending = self.async_mode is AsyncMode.ASYNC and not last_step
        self.newest, self.pending = (self.pending or self.newest, curr_step) if pending else (curr_step, 0)
        if dist.get_rank() == 0:
            try:
                retain(self.place, self.config.keep_last, self.config.keep_every)
            except OSError as error:  # what could not be removed is removed after the next save
                logger.warning(f"an old checkpoint could not be removed: {error}")

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        *args: Any,
        **options: Any,
    ) -> Any:
        with self.times.saving(async_mode is not AsyncMode.DISABLED) as saving:
            saving.result = self._dcp_save(state_dict, checkpoint_id, async_mode, *args, **options)
        return saving.result

    def _async_wait(self) -> None:
        with self.times.waiting():
            super()._async_wait()

    def _dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: AsyncMode,
        *args: Any,
        **options: Any,
    ) -> Any:
        if not is_remote(self.place):
            return super().dcp_save(state_dict, checkpoint_id, async_mode, *args, **options)
        with torch.no_grad():
            writer = StoreWriter(self.place / Path(checkpoint_id).name)
            if async_mode is AsyncMode.ASYNC:
                return state_dict_saver.async_save(state_dict, storage_writer=writer, process_group=self.pg)
            return state_dict_saver.save(state_dict, storage_writer=writer)

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        step = self.place / Path(checkpoint_id).name
        reader = StoreReader(step) if is_remote(self.place) else SafeReader(step)
        load_states(state_dict, reader)
        self.states["model"].load_state_dict(state_dict)

    def _create_checkpoint_id(self, step: int, folder: str = "") -> str:
        return f"{self.place}/step-{step}"


def remove_incomplete(folder: Path) -> list[int]:
    """Delete unfinished step folders (of a killed or failed save); returns their steps.

    A folder, local or in a store, with a file that DCP does not write is somebody's, and stays whole.
    """
    unfinished = [found for found in step_folders(folder) if not is_file(found[1] / METADATA)]
    return sorted(step for step, path in unfinished if _removed(path))


def retain(folder: Path, keep_last: int, keep_every: int) -> list[int]:
    """Delete complete checkpoints but the `keep_last` newest and multiples of `keep_every` (0: none).

    One with a file that DCP does not write stays whole. Returns the steps that the rule keeps.
    """
    steps = complete_steps(folder)
    kept = kept_steps(steps, keep_last, keep_every)
    for step in sorted(set(steps) - set(kept)):
        _removed(folder / f"step-{step}")
    return kept


def _removed(folder: Path) -> bool:
    """Delete the states of a step folder file by file, unless it holds something else."""
    if not is_remote(folder) and folder.is_symlink():
        _say_kept(folder, "is a link")
        return False
    found = list_folder(folder)
    if other := [path.name for path in found if not _is_state(path)]:
        _say_kept(folder, f"holds {other[0]!r}, which is no training state")
        return False
    names = [path.name for path in found]
    # .metadata first, so that a half-deleted folder is an unfinished one
    for part in ([name for name in names if name == METADATA], [name for name in names if name != METADATA]):
        try:
            remove_files(folder, part)
        except OSError as error:
            if is_remote(folder):
                raise
            logger.warning(f"{folder}: not removed ({one_line(error, 300)})")
    return True


def _is_state(path: Path) -> bool:
    return bool(_STATES.fullmatch(path.name)) and (is_remote(path) or path.is_file())


@cache
def _say_kept(folder: Path, why: str) -> None:
    """Once for each folder, as it is looked at after every save."""
    logger.warning(f"{folder}: {why}, so the whole folder is kept")


def is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def save_error(error: BaseException, folder: Path, newest: int = 0) -> OSError:
    """One-line error of a failed save: where, why, which checkpoint is intact, what to do.

    newest: the last step known to be complete, for a store that does not answer.
    """
    cause = _root_cause(error)
    with suppress(OSError):
        newest = max(complete_steps(folder), default=0)
    good = f"the checkpoint of step {newest} is intact" if newest else "no earlier checkpoint exists"
    reason = f"{type(cause).__name__}: {one_line(cause, 300)}"
    if is_remote(folder):
        return OSError(
            f"{folder}: checkpoint could not be written ({reason}); {good}; run again to resume when the "
            "store answers"
        )
    free_mb = shutil.disk_usage(folder).free / 2**20 if folder.is_dir() else 0.0
    reason = "the disk is full" if is_full(cause) or free_mb < 1 else reason
    return OSError(
        f"{folder}: checkpoint could not be written ({reason}, {free_mb:.0f} MB free); {good}; free space "
        "and run again to resume"
    )


def _root_cause(error: BaseException) -> BaseException:
    """An OSError anywhere in the chain, or below DCP's CheckpointException; else the error itself."""
    seen: list[BaseException] = [error]
    for item in seen:
        if isinstance(item, OSError):
            return item
        failures = getattr(item, "failures", {})
        below = [pair[0] for pair in failures.values()] + [item.__cause__, item.__context__]
        seen.extend(child for child in below if isinstance(child, BaseException) and child not in seen)
    return error
