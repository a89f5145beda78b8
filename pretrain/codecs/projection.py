"""Linear map between data vectors and standardised latents: PCA, partial whitening, rotation.

Standardised channels can mean two things. Whitening each principal component (`whitening` 1) gives the faint
ones as much of the model's effort and of its error as the strong ones. Keeping the components' energies
(`whitening` 0) makes a latent's error the data's error up to one scale. Any exponent between is allowed:
component i is divided by its standard deviation to the power `whitening`, then a fixed orthogonal matrix
spreads the energies evenly over the channels, which are then standardised exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearProjection:
    """latent = ((x - mean) @ encoder - channel_mean) / channel_std; `decode` is the affine inverse."""

    mean: Tensor  # [D]
    encoder: Tensor  # [D, C]
    decoder: Tensor  # [C, D]
    channel_mean: Tensor  # [C]
    channel_std: Tensor  # [C]

    def encode(self, vectors: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        return ((vectors - self.mean) @ self.encoder - self.channel_mean) / self.channel_std

    def decode(self, latents: Tensor) -> Tensor:
        """[..., C] -> [..., D]."""
        return (latents * self.channel_std + self.channel_mean) @ self.decoder + self.mean

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], where: str) -> LinearProjection:
        """Raises ValueError when a tensor is missing."""
        missing = [field.name for field in fields(cls) if field.name not in tensors]
        if missing:
            raise ValueError(f"{where}: no tensor {', '.join(missing)}; run `nava codec` again")
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def fit_projection(vectors: Tensor, num_channels: int, whitening: float) -> LinearProjection:
    """PCA of [N, D] vectors to `num_channels`; ValueError for too few vectors or an exponent outside 0..1."""
    if not 0.0 <= whitening <= 1.0:
        raise ValueError(f"whitening: {whitening}; set 0 (keep the components' energies) to 1 (whiten them)")
    if len(vectors) <= num_channels:
        raise ValueError(
            f"{len(vectors)} vectors cannot fit {num_channels} components; give more clips to the codec"
        )
    mean = vectors.mean(0)
    basis = _leading_directions(vectors - mean, num_channels)  # [D, C] orthonormal
    coefficients = (vectors - mean) @ basis
    deviation = coefficients.std(0)
    if float(deviation[-1]) < 1e-6 * float(deviation[0]) or not float(deviation[0]):
        raise ValueError(
            f"the data has fewer than {num_channels} directions (all clips alike?); give more varied clips "
            "to the codec"
        )
    temper = deviation**whitening
    rotation = orthogonal_mixing(num_channels)
    encoder = (basis / temper) @ rotation.T
    decoder = rotation @ (basis * temper).T
    latents = (vectors - mean) @ encoder
    return LinearProjection(mean, encoder, decoder, latents.mean(0), latents.std(0))


def _leading_directions(centred: Tensor, num_channels: int) -> Tensor:
    """[D, C] leading right singular vectors, strongest first, each with its largest entry positive."""
    size = centred.shape[1]
    if size <= 512:
        basis = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :num_channels]
    # Halko, Martinsson and Tropp's subspace iteration; the exact solution of a 3072-wide matrix takes ten
    # times as long
    else:
        start = torch.randn(size, num_channels + 16, generator=torch.Generator().manual_seed(0))
        for _ in range(6):
            start = torch.linalg.qr(centred.T @ (centred @ start)).Q
        small = centred @ start
        basis = start @ torch.linalg.eigh(small.T @ small).eigenvectors.flip(1)[:, :num_channels]
    return basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()


def orthogonal_mixing(size: int) -> Tensor:
    """[size, size] Hadamard matrix / sqrt(size): each output mixes all inputs. Size 2^k or 12 * 2^k."""
    from scipy.linalg import hadamard  # slow to import, needed only to fit

    core, power = (12, size // 12) if size % 12 == 0 else (1, size)
    if power & (power - 1) or not power:
        raise ValueError(f"{size} channels: no Hadamard matrix at hand; use 2^k or 12 * 2^k channels")
    matrix = np.kron(hadamard(power), _hadamard_12()) if core == 12 else hadamard(power)
    return torch.from_numpy(np.asarray(matrix, dtype=np.float64) / np.sqrt(size)).float()


def _hadamard_12() -> np.ndarray:
    """Paley's construction from the squares modulo 11."""
    squares = {value * value % 11 for value in range(1, 11)}
    jacobsthal = np.array(
        [
            [0 if row == col else 1 if (row - col) % 11 in squares else -1 for col in range(11)]
            for row in range(11)
        ]
    )
    skew = np.block([[np.zeros((1, 1)), np.ones((1, 11))], [-np.ones((11, 1)), jacobsthal]])
    return np.eye(12) + skew
