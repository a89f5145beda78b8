"""Rectified flow: x_s = (1 - s) x0 + s eps, velocity v = eps - x0, sigma s in (0, 1] (nava.md, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.config import FINITE, POSITIVE, check_bounds

NUM_RELEASE_SIGMAS = 1000


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_s; sigma broadcasts against clean."""
    return torch.lerp(clean, noise, sigma)


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """dx_s / ds."""
    return noise - clean


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """s' = shift s / (1 + (shift - 1) s): more time at high noise for shift > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def release_sigmas(shift: float = 5.0) -> Tensor:
    """The release's 1000 training sigmas, from noisy to clean, fp64."""
    grid = torch.linspace(1.0, 0.003 / 1.002, NUM_RELEASE_SIGMAS + 1, dtype=torch.float64)[:-1]
    return shift_sigma(grid, shift)


@dataclass(frozen=True, kw_only=True)
class LevelConfig:
    """Distribution and weights of training sigmas. Raises ValueError unless shift and width are positive."""

    draw: Literal["release", "logit_normal"] = "release"
    weight: Literal["release", "flat"] = "release"
    shift: float = 5.0
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        if self.draw not in ("release", "logit_normal"):
            raise ValueError(f"draw must be release or logit_normal, got {self.draw!r}")
        if self.weight not in ("release", "flat"):
            raise ValueError(f"weight must be release or flat, got {self.weight!r}")
        check_bounds(self, {"shift": POSITIVE, "logit_mean": FINITE, "logit_std": POSITIVE}, "levels.")


def draw_sigma(config: LevelConfig, generator: torch.Generator) -> float:
    """One training sigma in (0, 1]."""
    if config.draw == "release":
        index = int(torch.randint(NUM_RELEASE_SIGMAS, (), generator=generator))
        start, end = 1.0, 0.003 / 1.002
        sigma = start + (end - start) * index / NUM_RELEASE_SIGMAS
    else:
        normal = float(torch.randn((), generator=generator)) * config.logit_std + config.logit_mean
        sigma = 1 / (1 + math.exp(-normal))
    return float(config.shift * sigma / (1 + (config.shift - 1) * sigma))


def sigma_weight(sigma: Tensor, config: LevelConfig) -> Tensor:
    """Loss weight per sigma: exp(-2 (s - 1/2)^2) less its minimum, with mean 1 over the release's."""
    if config.weight == "flat":
        return torch.ones_like(sigma)
    sigmas = release_sigmas(config.shift)
    bell = torch.exp(-2 * (sigmas - 0.5) ** 2)
    low, mean = float(bell.min()), float((bell - bell.min()).mean())
    return ((torch.exp(-2 * (sigma - 0.5) ** 2) - low) / mean).clamp_min(0.0)
