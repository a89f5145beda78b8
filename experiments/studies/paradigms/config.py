"""What `nava study paradigms` compares, as one frozen section of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

PARADIGMS = {"nava": "mini", "dual_tower": "dual_tower", "unified": "unified"}  # paradigm -> flavor
REFERENCE = "nava"  # its FLOPs are the target of the equal-FLOPs budget
STEPS, FLOPS = "equal_steps", "equal_flops"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Size of the study. Raises ValueError for numbers out of range."""

    seeds: int = 3
    steps_factor: float = 0.45  # of the recipe's steps and warm-up, every stage
    num_prompts: int = 104  # the first of `prompts`
    prompts: str = "pretrain_seen"
    score_after: tuple[str, ...] = ("stage2", "stage3")  # the last stage is always scored
    # concurrent trainings, one rank each on its share of the cores, so that nothing is all-reduced
    parallel_runs: int = 2
    same_within: float = 0.02  # relative difference of FLOPs per step below which no separate run is made
    recognizer_processes: int = 1  # of each training's scoring
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("seeds", "num_prompts", "parallel_runs", "recognizer_processes", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.steps_factor < float("inf"):
            raise ValueError(f"steps_factor must be above 0, got {self.steps_factor}")
        if not 0 <= self.same_within < 1:
            raise ValueError(f"same_within must be in [0, 1), got {self.same_within}")
