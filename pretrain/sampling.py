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
class LatentRates:
    """Rates of the clips being made."""

    video_hz: float  # latent video frames per second
    audio_hz: float  # audio tokens per second


VelocityModel = Callable[[Stream | None, Stream | None, Conditioning], Velocity]


def sample(
    model: VelocityModel,
    noise: Latents,
    conditioning: Conditioning,
    rates: LatentRates,
    config: SamplerConfig,
    first_frame: Tensor | None = None,
    negative: Conditioning | None = None,
    voiced: bool | None = None,
) -> Latents:
    """Latents of B clips from noise; without noise of a modality, none of it and no forward of it.

    `first_frame` [B, 48, 1, H, W] is clean (sigma 0) and kept. `negative`, `voiced`: as of
    `flow.guidance.guided_velocity`. Raises ValueError for a first frame without video.
    """
    start = noise
    if first_frame is not None:
        if noise.video is None:
            raise ValueError(
                "a first frame was given, but no video is generated; generate video too or drop the image"
            )
        start = Latents(torch.cat([first_frame, noise.video[:, :, 1:]], dim=2), noise.audio)

    def velocity(video: Stream | None, audio: Stream | None) -> Velocity:
        return guided_velocity(
            lambda conditions: model(video, audio, conditions),
            conditioning,
            config.guidance,
            negative=negative,
            joint=video is not None and audio is not None,
            voiced=voiced,
        )

    return integrate(velocity, start, rates, config, first_frame is not None)


def integrate(
    velocity_of: Callable[[Stream | None, Stream | None], Velocity],
    start: Latents,
    rates: LatentRates,
    config: SamplerConfig,
    first_frame_given: bool = False,
) -> Latents:
    """Latents at the end of the field that `velocity_of` answers with, guidance included.

    first_frame_given: the first latent frame of `start` is clean and kept.
    """

    def velocity(state: Latents, sigma: float) -> Velocity:
        predicted = velocity_of(*streams(state, sigma, rates, first_frame_given))
        if not first_frame_given or predicted.video is None:
            return predicted
        still = predicted.video.clone()
        still[:, :, 0] = 0
        return Velocity(still, predicted.audio)

    with torch.no_grad():  # not inference_mode: what FSDP gathers is kept, and is trained with afterwards
        made = solve(velocity, start, config.steps, config.shift, config.solver)
    if first_frame_given and made.video is not None and start.video is not None:
        # multistep solvers move even what has no velocity, by rounding
        made.video[:, :, 0] = start.video[:, :, 0]
    return made


def streams(
    state: Latents, sigma: float, rates: LatentRates, first_frame_given: bool = False
) -> tuple[Stream | None, Stream | None]:
    """The model's inputs at one sigma, all samples of full length."""
    video = audio = None
    if state.video is not None:
        batch, _, frames = state.video.shape[:3]
        groups = frames if first_frame_given else 1
        sigmas = state.video.new_full((batch, groups), sigma, dtype=torch.float32)
        if first_frame_given:
            sigmas[:, 0] = 0
        video = Stream(state.video, torch.full((batch,), frames), sigmas, rates.video_hz, rates.video_hz)
    if state.audio is not None:
        batch, _, tokens = state.audio.shape
        sigmas = state.audio.new_full((batch, 1), sigma, dtype=torch.float32)
        audio = Stream(state.audio, torch.full((batch,), tokens), sigmas, rates.audio_hz, rates.video_hz)
    return video, audio


def lower_precision(model: AVTransformer, dtype: torch.dtype) -> AVTransformer:
    """The model in `dtype`, its time path left in fp32 (in place)."""
    model.to(dtype)
    model.time.float()
    return model
