"""The state between two rounds on disk (DCP): adapters, average, moments, progress.

Draws are keyed, so no random state is stored. Used for resuming the same run only; what others read is
exported as safetensors (`finetune.export`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from finetune.align_run import CHECKPOINTS
from finetune.progress import AlignProgress
from finetune.trainer import Trainer
from pretrain.launch.states import complete_steps
from pretrain.titan.checkpoints import remove_incomplete, retain, save_error
from pretrain.titan.safe_dcp import SafeReader, load_states

FOLDER = CHECKPOINTS


def save(
    out: Path, trainer: Trainer, progress: AlignProgress, best: dict[str, Tensor], keep_last: int
) -> None:
    """Write checkpoint/step-ROUNDS on all ranks. Raises OSError in one line; earlier ones are kept."""
    folder = out / FOLDER
    path = folder / f"step-{progress.rounds}"
    if (path / ".metadata").is_file():
        return
    try:
        state_dict_saver.save(_state(trainer, progress, best), checkpoint_id=path)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        reported = save_error(error, folder)
        if trainer.ranks.rank == 0:
            remove_incomplete(folder)
        raise reported from error
    if trainer.ranks.rank == 0:
        retain(folder, keep_last, 0)


def load(out: Path, trainer: Trainer, best: dict[str, Tensor]) -> AlignProgress:
    """Restore the newest finished checkpoint into policy, optimizer and `best`.

    Returns a fresh AlignProgress if there is none.
    """
    steps = complete_steps(out / FOLDER)
    if not steps:
        return AlignProgress()
    state = _state(trainer, AlignProgress(), best)
    reader = SafeReader(out / FOLDER / f"step-{steps[-1]}")
    load_states(state, reader)
    trainer.policy.load_state_dict(state["policy"])
    progress = AlignProgress.from_json(state["progress"])
    trainer.skipped, trainer.skipped_in_a_row = progress.skipped, progress.skipped_in_a_row
    return progress


def newest(out: Path) -> int:
    """Rounds of the newest finished checkpoint; 0 where there is none."""
    return max(complete_steps(out / FOLDER), default=0)


def _state(trainer: Trainer, progress: AlignProgress, best: dict[str, Tensor]) -> dict[str, Any]:
    progress.skipped, progress.skipped_in_a_row = trainer.skipped, trainer.skipped_in_a_row
    return {
        "policy": trainer.policy.state_dict(),
        "moments": trainer.moments(),
        "progress": json.dumps(asdict(progress)),
        **({"best": best} if best else {}),
    }
