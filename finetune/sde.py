"""Stochastic flow steps and their log-probabilities, for sampling and replay (alignment.md 2.2, 2.3, 2.8).

A step leads from `level` to the lower `next_level` (sigmas); v = eps - x0. Coefficients are computed in fp64
and applied in the state's precision, which must be fp32 or fp64: a state rounded to bf16 differs from the one
that was scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.types import sent

KernelName = Literal["flow_sde", "cps"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How noise enters a step.

    `flow_sde`: eta scales sqrt(s / (1 - s)). `cps`: eta in (0, 1] is the share of fresh noise at the next
    sigma, as an angle in quarter turns. Raises ValueError for an unknown name or eta out of range.
    """

    name: KernelName = "cps"
    eta: float = 0.8

    def __post_init__(self) -> None:
        if self.name not in ("flow_sde", "cps"):
            raise ValueError(f"kernel must be flow_sde or cps, got {self.name!r}")
        if not (0 < self.eta < math.inf and (self.name == "flow_sde" or self.eta <= 1)):
            raise ValueError(
                f"eta must be above 0 (cps: at most 1), got {self.eta} for {self.name}; without noise there "
                "is no density"
            )


@dataclass(frozen=True, kw_only=True)
class StochasticSteps:
    """`window` consecutive stochastic steps among a sampler's first `first_steps`; all others are Euler's.

    The window is the same for a whole group.
    """

    kernel: Kernel
    window: int
    first_steps: int


class Transition(NamedTuple):
    """The normal distribution of the next state."""

    mean: Tensor  # like the state
    step_std: Tensor  # [B], fp64; standard deviation of the noise added in this step; 0 = deterministic
    moving: Tensor | None = None  # [B], share of the clip's elements that move; None = all do


class StochasticStep(NamedTuple):
    """A step that was taken."""

    next_state: Tensor  # like the state, without gradient
    # [B], in the state's precision; mean over elements, so that it does not grow with the clip
    log_prob: Tensor


def transition(
    kernel: Kernel,
    state: Tensor,
    velocity: Tensor,
    level: Tensor,
    next_level: Tensor,
    given: Tensor | None = None,
) -> Transition:
    """Distribution of the next state; state, velocity [B, ...], level, next_level [B] in [0, 1], which belong
    on the host: they are looked at.

    given: [B] bool, clips whose first frame (of video states [B, 48, F, H, W]) stays as it is. At
    next_level 0 both kernels return the clean estimate x - s v, without noise. Raises ValueError if levels do
    not fall or the state has low precision.
    """
    _check(state, level, next_level)
    s, t = level.double(), next_level.double()
    if kernel.name == "cps":
        clean, noise, step_std = (
            1 - t,
            t * math.cos(kernel.eta * math.pi / 2),
            t * math.sin(kernel.eta * math.pi / 2),
        )
        # clean * (x - s v) + noise * (x + (1 - s) v)
        of_state, of_velocity = clean + noise, noise * (1 - s) - clean * s
    else:
        # at s = 1 the rate is infinite; the first step uses that of the next sigma
        rate = kernel.eta * torch.sqrt(s / (1 - torch.where(s == 1, t, s)))
        rate = torch.where(t == 0, 0.0, rate)
        dt = t - s
        pull = rate**2 / (2 * s)
        of_state, of_velocity, step_std = 1 + pull * dt, (1 + pull * (1 - s)) * dt, rate * torch.sqrt(-dt)
    mean = _over(of_state, state) * state + _over(of_velocity, state) * velocity.to(state.dtype)
    step_std = sent(step_std, state.device)
    if given is None:
        return Transition(mean, step_std)
    mean = torch.where(first_latents(given, state), state, mean)
    return Transition(mean, step_std, 1 - given.to(state.dtype) / state.shape[2])


def log_prob(kernel: Kernel, next_state: Tensor, reached: Transition) -> Tensor:
    """[B]: log-likelihood of `next_state`, as a mean over the elements that move.

    flow_sde: the normal log-density; cps: minus the squared distance to the mean, with equal weight for all
    steps. A deterministic step has no density and gives 0 without gradient.
    """
    squared = (next_state.detach() - reached.mean).square().flatten(1).mean(1)
    if reached.moving is not None:
        squared = torch.where(reached.moving > 0, squared / reached.moving, 0.0)
    noisy = reached.step_std > 0
    if kernel.name == "flow_sde":
        step_std = torch.where(noisy, reached.step_std, 1.0)
        squared = squared * (0.5 / step_std**2).to(squared.dtype) + (
            torch.log(step_std) + 0.5 * math.log(2 * math.pi)
        ).to(squared.dtype)
    return -squared * noisy


def step(
    kernel: Kernel,
    state: Tensor,
    velocity: Tensor,
    level: Tensor,
    next_level: Tensor,
    noise: Tensor,
    given: Tensor | None = None,
) -> StochasticStep:
    """Draw the next state with standard normal `noise` shaped like the state, and its log-probability.

    given: as in `transition`.
    """
    reached = transition(kernel, state, velocity, level, next_level, given)
    if given is not None:
        noise = torch.where(first_latents(given, state), 0.0, noise)
    next_state = (reached.mean + _over(reached.step_std, state) * noise.to(state.dtype)).detach()
    return StochasticStep(next_state, log_prob(kernel, next_state, reached))


def replay(
    kernel: Kernel,
    state: Tensor,
    velocity: Tensor,
    level: Tensor,
    next_level: Tensor,
    next_state: Tensor,
    given: Tensor | None = None,
) -> Tensor:
    """Log-probability [B] of a stored step under this velocity.

    Bit-identical to that of `step` for the same velocity. given: as in `transition`.
    """
    return log_prob(kernel, next_state, transition(kernel, state, velocity, level, next_level, given))


def normalised_log_ratio(
    kernel: Kernel,
    state: Tensor,
    velocity: Tensor,
    old_velocity: Tensor,
    level: Tensor,
    next_level: Tensor,
    next_state: Tensor,
    given: Tensor | None = None,
) -> Tensor:
    """[B]: log-ratio of a stored step under two velocities, of one scale for every step and size of clip.

    With n = (x' - mu_old) / std and d = mu - mu_old the step's log-ratio is, over its N elements, the sum of
    n d / std - d^2 / (2 std^2): a normal variable of deviation sqrt(N) rms(d) / std whose mean, minus half
    its variance, outweighs it. GRPO-Guard's RatioNorm (Wang et al. 2025, arXiv 2510.22319) adds the mean back
    and multiplies by std; here its mean over elements is also multiplied by sqrt(N):

        sqrt(N) mean(n d),  normal with mean 0 and deviation rms(d) where old_velocity took the step

    It is 0 at old_velocity, where its gradient is that of the log-density times std / sqrt(N). A
    deterministic step gives 0. `old_velocity` gets no gradient. given: as in `transition`; N counts the
    elements that move. Raises ValueError as `transition`.
    """
    old = transition(kernel, state, old_velocity.detach(), level, next_level, given)
    moved = transition(kernel, state, velocity, level, next_level, given).mean - old.mean
    noisy = old.step_std > 0
    scale = torch.where(noisy, 1 / torch.where(noisy, old.step_std, 1.0), 0.0)
    product = ((next_state.detach() - old.mean) * moved).flatten(1)
    normalised = scale.to(product.dtype) * product.mean(1) * math.sqrt(product.shape[1])
    if old.moving is None:
        return normalised
    still = old.moving == 0  # a clip of one frame, which was given
    return torch.where(still, 0.0, normalised / torch.where(still, 1.0, old.moving).sqrt())


def joint_log_prob(video: Tensor, audio: Tensor, video_share: float = 0.5) -> Tensor:
    """w lp_v + (1 - w) lp_a with w = video_share, independent of the modalities' sizes; of log-ratios too.

    Raises ValueError unless 0 <= w <= 1.
    """
    if not 0 <= video_share <= 1:
        raise ValueError(f"video_share must be between 0 and 1, got {video_share}")
    return video_share * video + (1 - video_share) * audio


def first_latents(given: Tensor, latents: Tensor) -> Tensor:
    """[B, 1, F, 1, 1] bool: the first frame of the clips `given` [B] bool, of video [B, 48, F, H, W]."""
    frames = torch.arange(latents.shape[2], device=latents.device)
    return (given[:, None] & (frames == 0)).view(len(given), 1, -1, 1, 1)


def _over(coefficient: Tensor, state: Tensor) -> Tensor:
    return sent(coefficient.to(state.dtype), state.device).view(-1, *[1] * (state.ndim - 1))


def _check(state: Tensor, level: Tensor, next_level: Tensor) -> None:
    if state.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"a state is kept in fp32, got {state.dtype}; rounding it moves the ratio by more than the clip "
            "range"
        )
    if not bool(((level > next_level) & (next_level >= 0) & (level <= 1)).all()):
        raise ValueError(
            f"a step goes from a level to a lower one in [0, 1], got {level.tolist()} to "
            f"{next_level.tolist()}"
        )
