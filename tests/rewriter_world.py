"""A language model too small to have learned anything, and prompts for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rewriter_student import Student, make_student, short_prompts
from safetensors.torch import load_file, save_file

from finetune.rewriter import tune
from finetune.rewriter.config import DpoTuning, GrpoTuning
from finetune.rewriter.rewards import RewardFunction
from finetune.rewriter.votes import RewritePair

ROWS = short_prompts(6, 3)
PAIRS = [
    RewritePair(
        row.data_id,
        row.prompt.text,
        f"The video shows this. {row.prompt.text}",
        f"Bad. {row.prompt.text}",
        False,
    )
    for row in ROWS
]


def small_model(folder: Path) -> Path:
    make_student(folder, Student(width=16, layers=1, steps=0))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= (
        20  # it is the head too: probabilities that a small adapter can move
    )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def grpo(**changes: Any) -> GrpoTuning:
    fields: dict[str, Any] = {
        "steps": 4,
        "batch": 8,
        "micro_batch": 4,
        "group": 4,
        "learning_rate": 1e-2,
        "completion_tokens": 8,
        "save_every": 2,
        "rank": 4,
        "alpha": 8,
        "device": "cpu",
    }
    return GrpoTuning(**{**fields, **changes})


def dpo(**changes: Any) -> DpoTuning:
    fields: dict[str, Any] = {
        "steps": 4,
        "batch": 4,
        "micro_batch": 2,
        "learning_rate": 1e-2,
        "save_every": 2,
        "rank": 4,
        "device": "cpu",
    }
    return DpoTuning(**{**fields, **changes})


class Vowels:
    """Share of vowels; `mishap` befalls the process when it is asked for the `at`-th time."""

    def __init__(self, at: int = 0, mishap: signal.Signals = signal.SIGTERM) -> None:
        self.at, self.mishap, self.calls = at, mishap, 0

    def functions(self, *_: Any) -> tuple[list[RewardFunction], list[float]]:
        return [self.vowels], [1.0]

    def vowels(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), self.mishap)
        texts = ["".join(message["content"] for message in each) for each in completions]
        return [sum(sign in "aeiou" for sign in text) / max(1, len(text)) for text in texts]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


def tune_and_die(rank: int, folder: Path, out: Path, at: int) -> int:
    """Killed while the `at`-th step is scored."""
    tune.reward_functions = Vowels(at, signal.SIGKILL).functions  # type: ignore[assignment]
    tune.tune_grpo(grpo(), folder, ROWS, out)
    return 0
