"""From noise to latents: Euler, and UniPC by diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.config import nearest
from pretrain.flow.path import shift_sigma
from pretrain.types import Velocity

SolverName = Literal["euler", "unipc"]


@dataclass(frozen=True)
class Latents:
    """The state of a trajectory; None for an absent modality."""

    video: Tensor | None  # [B, 48, F, H, W]
    audio: Tensor | None  # [B, 128, L]


VelocityField = Callable[[Latents, float], Velocity]
SolverStep = Callable[[Tensor, Tensor, int], Tensor]


def sampling_sigmas(num_steps: int, shift: float) -> list[float]:
    """num_steps + 1 sigmas from 1 to 0. Raises ValueError below one step."""
    if num_steps < 1:
        raise ValueError(f"steps must be at least 1, got {num_steps}")
    return shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist()


def solver_sigmas(solver: SolverName, num_steps: int, shift: float) -> list[float]:
    """The num_steps + 1 sigmas that a solver goes through, from 1 to 0. Raises ValueError as `solve`."""
    return _maker(solver)(num_steps, shift)[0]


def solve(
    field: VelocityField, start: Latents, num_steps: int, shift: float, solver: SolverName = "euler"
) -> Latents:
    """Integrate dx/ds = field(x, s) from s = 1 to 0. Raises ValueError on an unknown solver."""
    make = _maker(solver)
    sigmas, video_step = make(num_steps, shift)
    _, audio_step = make(num_steps, shift)  # multistep solvers keep a history per stream
    state = start
    for index in range(num_steps):
        velocity = field(state, sigmas[index])
        state = Latents(
            video=_advance(video_step, state.video, velocity.video, index),
            audio=_advance(audio_step, state.audio, velocity.audio, index),
        )
    return state


def _maker(solver: str) -> Callable[[int, float], tuple[list[float], SolverStep]]:
    makers = {"euler": _euler, "unipc": _unipc}
    if solver not in makers:
        raise ValueError(f"unknown solver {solver!r}; {nearest(solver, makers)}")
    return makers[solver]


def _advance(step: SolverStep, latents: Tensor | None, velocity: Tensor | None, index: int) -> Tensor | None:
    return None if latents is None or velocity is None else step(latents, velocity, index)


def _euler(num_steps: int, shift: float) -> tuple[list[float], SolverStep]:
    sigmas = sampling_sigmas(num_steps, shift)
    return sigmas, lambda latents, velocity, index: latents + velocity * (sigmas[index + 1] - sigmas[index])


def _unipc(num_steps: int, shift: float) -> tuple[list[float], SolverStep]:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2
    )
    scheduler.set_timesteps(num_steps)

    def step(latents: Tensor, velocity: Tensor, index: int) -> Tensor:
        return scheduler.step(velocity, scheduler.timesteps[index], latents, return_dict=False)[0]

    return scheduler.sigmas.tolist(), step
