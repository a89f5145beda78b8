"""Step policy: non-finite and spiking gradients are skipped and counted; many in a row stop the run."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from pretrain.recipe import StepPolicy


class StepGuard:
    """Decides from the global gradient norm, identically on every rank. A torch Stateful."""

    def __init__(self, policy: StepPolicy) -> None:
        self.policy = policy
        self.norms: list[float] = []  # of the last taken steps
        self.skipped_nonfinite = self.skipped_spikes = self.in_a_row = 0
        self.last_finite = True

    def take(self, loss: float, grad_norm: float, step: int) -> bool:
        """True to apply the step. Raises ValueError after too many skips in a row."""
        finite = self.last_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite and not self._spikes(grad_norm):
            self.in_a_row = 0
            self.norms = [*self.norms, grad_norm][-self.policy.spike_window :]
            return True
        self.skipped_nonfinite += not finite
        self.skipped_spikes += finite
        self.in_a_row += 1
        if self.in_a_row > self.policy.max_skips_in_a_row:
            raise ValueError(
                f"step {step}: {self.in_a_row} steps in a row skipped (loss {loss:g}, gradient norm "
                f"{grad_norm:g}); lower the stage's lr, "
                f"check the latents, or raise policy.max_skips_in_a_row"
            )
        return False

    def check_end(self, step: int) -> None:
        """Raises ValueError where the last step was not finite, or the last two or more were skipped."""
        if self.in_a_row and (self.in_a_row > 1 or not self.last_finite):
            raise ValueError(
                f"step {step}: {self.in_a_row} step(s) at the end were skipped ({self.skipped_nonfinite} in "
                "all had a loss or gradient that is not finite); the model is not exported: train again with "
                "a lower lr, or with more steps where these were spikes"
            )

    def _spikes(self, grad_norm: float) -> bool:
        window_full = len(self.norms) >= self.policy.spike_window > 0
        return bool(
            self.policy.spike_factor
            and window_full
            and grad_norm > self.policy.spike_factor * statistics.median(self.norms)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"judge": json.dumps({name: getattr(self, name) for name in self._FIELDS})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in json.loads(state["judge"]).items():
            setattr(self, name, value)

    _FIELDS = ("norms", "skipped_nonfinite", "skipped_spikes", "in_a_row", "last_finite")
