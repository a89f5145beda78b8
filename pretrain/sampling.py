"""Prompts in latent space -> clean latents: solver over guidance over the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pretrain.config import ADDED, FROM_ONE, POSITIVE, check_bounds
from pretrain.flow.guidance import GuidanceScales, guided_velocity
from pretrain.flow.reuse import FeatureCacheConfig, computed_steps
from pretrain.flow.solvers import Latents, SolverName, solve, solver_sigmas
from pretrain.model.feature_cache import FeatureCache, velocity_of_pass
from pretrain.model.shell import AVTransformer
from pretrain.types import Conditioning, Stream, Velocity


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a trajectory is integrated and guided; the defaults are the release's.

    Raises ValueError below one step and for a shift that is not above 0, which leads nowhere.
    """

    solver: SolverName = "unipc"
    steps: int = 50
    shift: float = 5.0
    guidance: GuidanceScales = field(default_factory=GuidanceScales)
    # features that are reused between steps; off by default
    cache: FeatureCacheConfig = field(default_factory=FeatureCacheConfig, metadata={ADDED: True})

    def __post_init__(self) -> None:
        check_bounds(self, {"steps": FROM_ONE, "shift": POSITIVE}, "sampler.")

    def computed_steps(self) -> list[bool]:
        """Whether each step computes the model's blocks or reuses features. Raises ValueError as `solve`."""
        return computed_steps(solver_sigmas(self.solver, self.steps, self.shift), self.cache)

    @property
    def reused_steps(self) -> int:
        """Steps that do not compute the model's blocks."""
        return self.computed_steps().count(False) if self.cache.enabled else 0


@dataclass(frozen=True)
class LatentRates:
    """Rates of the clips being made."""

    video_hz: float  # latent video frames per second
    audio_hz: float  # audio tokens per second


VelocityModel = Callable[..., Velocity]  # as AVTransformer.forward; the features are given with a cache only


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

    def velocity(video: Stream | None, audio: Stream | None, cache: FeatureCache | None = None) -> Velocity:
        return guided_velocity(
            velocity_of_pass(model, video, audio, cache),
            conditioning,
            config.guidance,
            negative=negative,
            joint=video is not None and audio is not None,
            voiced=voiced,
        )

    return integrate(velocity, start, rates, config, first_frame is not None)


def integrate(
    velocity_of: Callable[..., Velocity],
    start: Latents,
    rates: LatentRates,
    config: SamplerConfig,
    first_frame_given: bool = False,
) -> Latents:
    """Latents at the end of the field that `velocity_of` answers with, guidance included.

    velocity_of: of (video, audio), and where the config has a cache of (video, audio, cache), whose passes it
    has to take. first_frame_given: the first latent frame of `start` is clean and kept.
    """
    cache = FeatureCache(config.computed_steps()) if config.cache.enabled else None

    def velocity(state: Latents, sigma: float) -> Velocity:
        given = streams(state, sigma, rates, first_frame_given)
        predicted = velocity_of(*given) if cache is None else velocity_of(*given, cache.begin_step())
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
