"""Heads that answer with clean latents: their answer as a velocity (EDM preconditioning)."""

from __future__ import annotations

from torch import Tensor

from pretrain.types import Stream


def velocity_of_answer(answer: Tensor | None, stream: Stream | None, deviation: float | None) -> Tensor | None:
    """A head's answer as a velocity."""
    if answer is None or stream is None or deviation is None:
        return answer
    sigma = stream.sigma.unflatten(1, (1, -1, *[1] * (answer.ndim - 3)))
    return velocity_of_clean(answer, stream.latents, sigma, deviation)


def velocity_of_clean(answer: Tensor, latents: Tensor, sigma: Tensor, deviation: float) -> Tensor:
    """(x_s - x0) / s for x0 = skip * x_s + out * answer, finite at s = 0.

    skip and out are those of EDM (Karras et al. 2022, section 5) for data of standard deviation `deviation` d on the path
    x_s = (1 - s) x0 + s eps, with out scaled to 1 at s = 1: skip = d^2 (1 - s) / w, out = s / sqrt(w), w = s^2 + d^2 (1 - s)^2.
    """
    variance = deviation**2
    weight = sigma**2 + variance * (1 - sigma) ** 2
    return latents * (sigma - variance * (1 - sigma)) / weight - answer * weight.rsqrt()
