"""How many clips a model was trained on so far: the axis on which the stages of a recipe are one curve."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.launch.stage_run import StageRun
from pretrain.launch.torchrun import METRICS
from pretrain.storage import is_remote
from pretrain.tracking import CLIPS_SEEN, last_value


def clips_seen(run: StageRun, step: int, of_step: Callable[[int], int]) -> int:
    """Clips of all ranks up to and including `step`, those of the stages before it included.

    of_step: clips of a step of this stage. What was seen before is in the rows of metrics.jsonl, of the stage
    itself and beside the model that it starts from; a model that came without them starts at 0.
    """
    known_step, known = last_value(run.out / METRICS, CLIPS_SEEN)
    if known is None:
        parent = run.init_from
        if parent is not None and not is_remote(parent):
            known = last_value(parent.parent / METRICS, CLIPS_SEEN)[1]
    return int(known or 0) + sum(map(of_step, range(known_step + 1, step + 1)))
