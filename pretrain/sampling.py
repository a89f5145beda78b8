"""Prompts in latent space -> clean latents: solver over guidance over the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pretrain.flow.guidance import GuidanceScales, guided_velocity
from pretrain.flow.solvers import Latents, SolverName, solve
from pretrain.model.shell import AVTransformer
from pretrain.types import Conditioning, Stream, Velocity


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a trajectory is integrated and guided; the defaults are the release's."""

    solver: SolverName = "unipc"
    steps: int = 50
    shift: float = 5.0
    guidance: GuidanceScales = field(default_factory=GuidanceScales)


@dataclass(frozen=True)
class Clock:
    """Rates of the clips being made."""

    video_hz: float  # latent video frames per second
    audio_hz: float  # audio tokens per second


VelocityModel = Callable[[Stream | None, Stream | None, Conditioning], Velocity]


def sample(
    model: VelocityModel,
    noise: Latents,
    conditioning: Conditioning,
    clock: Clock,
    config: SamplerConfig,
    first_frame: Tensor | None = None,
) -> Latents:
    """Latents of B clips from noise. `first_frame` [B, 48, 1, H, W] is clean (sigma 0) and kept."""
    start = noise
    if first_frame is not None:
        if noise.video is None:
            raise ValueError(
                "a first frame was given, but no video is generated; generate video too or drop the image"
            )
        start = Latents(torch.cat([first_frame, noise.video[:, :, 1:]], dim=2), noise.audio)

    def velocity(state: Latents, level: float) -> Velocity:
        video, audio = streams(state, level, clock, first_frame is not None)
        answer = guided_velocity(
            lambda given: model(video, audio, given),
            conditioning,
            config.guidance,
            joint=video is not None and audio is not None,
        )
        if first_frame is None or answer.video is None:
            return answer
        still = answer.video.clone()
        still[:, :, 0] = 0
        return Velocity(still, answer.audio)

    with torch.no_grad():  # not inference_mode: what FSDP gathers is kept, and is trained with afterwards
        return solve(velocity, start, config.steps, config.shift, config.solver)


def streams(
    state: Latents, level: float, clock: Clock, first_frame_given: bool = False
) -> tuple[Stream | None, Stream | None]:
    """The model's inputs at one flow level, all samples of full length."""
    video = audio = None
    if state.video is not None:
        batch, _, frames = state.video.shape[:3]
        sigma = state.video.new_full((batch, frames if first_frame_given else 1), level, dtype=torch.float32)
        if first_frame_given:
            sigma[:, 0] = 0
        video = Stream(state.video, torch.full((batch,), frames), sigma, clock.video_hz, clock.video_hz)
    if state.audio is not None:
        batch, _, tokens = state.audio.shape
        sigma = state.audio.new_full((batch, 1), level, dtype=torch.float32)
        audio = Stream(state.audio, torch.full((batch,), tokens), sigma, clock.audio_hz, clock.video_hz)
    return video, audio


def lower_precision(model: AVTransformer, dtype: torch.dtype) -> AVTransformer:
    """The model in `dtype`, its time path left in fp32 (in place)."""
    model.to(dtype)
    model.time.float()
    return model
