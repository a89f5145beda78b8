"""What `nava study claims` runs, as one frozen section of the recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClaimsConfig:
    """Size of the study; everything else is the recipe's. Raises ValueError for numbers out of range."""

    seeds: int = 3  # of each training
    noise_seeds: int = 3  # of rows that only sample from one trained model
    steps_factor: float = 1.0  # of the recipe's steps and warm-up, every stage
    # of the recipe's batch, learning rates by its square root: half as dear, less well trained (tuning.md)
    batch_factor: float = 0.5
    # the first of a row's prompts, or all: 48 one-word prompts tell word errors of 0.1 and 0 hardly apart
    num_prompts: int = 208
    # of each direction of guidance by itself, beside 0 and the release's own (2 and 3), which decides
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    # learning rates of which an arm takes its best, where a row asks for it; times the recipe's
    lr_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    parallel_runs: int = 2  # one rank each on its share of the cores
    recognizer_processes: int = 1  # of each run's scoring
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in (
            "seeds",
            "noise_seeds",
            "num_prompts",
            "parallel_runs",
            "recognizer_processes",
            "resamples",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"claims.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps_factor", "batch_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"claims.{name} must be above 0, got {getattr(self, name)}")
        for name in ("scales", "lr_factors"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not all(0 < value < float("inf") for value in values):
                raise ValueError(f"claims.{name}: expected distinct numbers above 0, got {list(values)}")
        if 1.0 not in self.lr_factors:
            raise ValueError(f"claims.lr_factors: the recipe's own rate, 1, is missing in {self.lr_factors}")
