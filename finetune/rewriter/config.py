"""How a prompt rewriter is tuned: what GRPO and DPO share, and what is their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Algorithm = Literal["grpo", "dpo"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A step takes `batch` completions (grpo) or pairs (dpo), `micro_batch` at a time. Raises ValueError."""

    steps: int = 100
    batch: int = 16
    micro_batch: int = 8
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    completion_tokens: int = 512  # a longer rewrite is cut
    save_every: int = 10  # steps between checkpoints
    seed: int = 0
    rank: int = 16
    alpha: int = 32
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu"] = "auto"  # auto: a GPU where there is one, in bfloat16 where it can

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro_batch", "completion_tokens", "save_every", "rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch: {self.batch} is no multiple of micro_batch {self.micro_batch}; give one that is"
            )
        if not 0 < self.learning_rate < math.inf or self.warmup_steps < 0:
            raise ValueError(
                f"learning_rate and warmup_steps must be positive, got {self.learning_rate} and "
                f"{self.warmup_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class GrpoTuning(Tuning):
    """`group` rewrites of a prompt are compared with each other. `rewards`: reward -> weight, 0 leaves one
    out.

    beta: weight of the KL term towards the model before tuning; 0 needs no reference. vllm: base URL of a
    vLLM server that generates, "" = this process does. normalise: each = every reward within its group before
    they are summed, for rewards of different scales; total = only their sum; auto = each where clips are
    scored.
    """

    group: int = 8
    temperature: float = 1.0
    beta: float = 0.0
    rewards: Mapping[str, float] = field(
        default_factory=lambda: {"spans": 2.0, "structure": 1.0, "length": 1.0, "clips": 1.0}
    )
    vllm: str = ""
    normalise: Literal["auto", "each", "total"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2 or self.batch % self.group:
            raise ValueError(f"group: expected 2 or more that divide batch {self.batch}, got {self.group}")
        if not 0 < self.temperature < math.inf or not 0 <= self.beta < math.inf:
            raise ValueError(
                f"temperature must be above 0 and beta from 0, got {self.temperature} and {self.beta}"
            )
        if not any(self.rewards.values()) or not all(
            0 <= weight < math.inf for weight in self.rewards.values()
        ):
            raise ValueError(f"rewards: expected weights from 0 and one above it, got {dict(self.rewards)}")
        if self.vllm and not self.vllm.startswith(("http://", "https://")):
            raise ValueError(
                f"vllm: expected the base URL of a server, such as http://localhost:8000, got {self.vllm!r}"
            )


@dataclass(frozen=True, kw_only=True)
class DpoTuning(Tuning):
    """beta: how strongly the tuned model is held to the one before (Rafailov et al. 2023)."""

    learning_rate: float = 5e-6
    beta: float = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta: expected a number above 0, got {self.beta}")


def described(config: Tuning) -> dict[str, Any]:
    """Every setting that changes the tuned weights, as plain JSON values."""
    changes_nothing = ("save_every",)
    values = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(config).items()
    }
    return {name: value for name, value in values.items() if name not in changes_nothing}
