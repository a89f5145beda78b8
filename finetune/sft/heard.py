"""How much sound a fine-tuning has trained on, and the stop where there is none."""

from __future__ import annotations

from typing import Any

import torch

ROW = "audio_seconds"


class SoundTrained:
    """Seconds of sound in the loss of the steps that were taken, over all ranks: of the clips, and in all.

    A torch Stateful, so that the sums go on after a resume. `needed`: the clips have speech, so a training
    that takes `patience` steps on them without any of their sound raises ValueError.
    """

    def __init__(self, needed: bool, patience: int) -> None:
        self.needed, self.patience = needed, patience
        self.clips_s = self.all_s = 0.0
        self.steps = 0  # on the clips

    def add(self, seconds: float, of_clips: bool) -> None:
        """Take in a step. Raises ValueError where the patience is over."""
        self.all_s += seconds
        if not of_clips:
            return
        self.clips_s += seconds
        self.steps += 1
        if self.steps >= self.patience:
            self.check()

    def check(self) -> None:
        """Raises ValueError where speech was to be learned, and no sound of the clips was."""
        if self.needed and self.steps and not self.clips_s:
            raise ValueError(
                f"no sound was trained on in {self.steps} steps on clips with speech; give them their sound "
                "and tasks that generate it, or set finetune.sound.required=false to train the picture alone"
            )

    def row(self) -> dict[str, float]:
        """Of a log row."""
        return {ROW: round(self.all_s, 3), f"{ROW}/clips": round(self.clips_s, 3)}

    def __str__(self) -> str:
        base = self.all_s - self.clips_s
        return f"{self.clips_s:.1f} s of sound of the clips trained on, {base:.1f} s of the base's data"

    def state_dict(self) -> dict[str, Any]:
        return {"sums": torch.tensor([self.clips_s, self.all_s, self.steps], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clips_s, self.all_s, steps = state["sums"].tolist()
        self.steps = int(steps)
