"""Rate-aware rotary positions: one clock for video frames and audio tokens (paper section 3, RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_split(head_dim: int) -> tuple[int, int, int]:
    """Real dims of a head given to time, rows and columns, e.g. 128 -> 44, 42, 42."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def _angles(positions: Tensor, num_dims: int, theta: float) -> Tensor:
    """[N] positions -> [N, num_dims // 2] angles, fp64."""
    exponents = torch.arange(0, num_dims, 2, dtype=torch.float64, device=positions.device) / num_dims
    return torch.outer(positions.double(), theta**-exponents)


def video_freqs_cis(
    frames: int, rows: int, columns: int, head_dim: int, theta: float, device: torch.device | None = None
) -> Tensor:
    """Turns of video tokens in (t, h, w) order: [frames * rows * columns, 1, head_dim // 2], complex64."""
    grid, parts = (frames, rows, columns), []
    for axis, (size, dims) in enumerate(zip(grid, axis_split(head_dim), strict=True)):
        along = freqs_cis_of(
            _angles(torch.arange(size, device=device), dims, theta)
        )  # sines of an axis, not of the whole grid
        parts.append(along.view(*[size if other == axis else 1 for other in range(3)], -1).expand(*grid, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)[:, None]


def audio_angles(
    tokens: int, rate_ratio: float, head_dim: int, theta: float, device: torch.device | None = None
) -> Tensor:
    """Angles of audio tokens [tokens, head_dim // 2], fp64: token p has the angle of video time
    p * rate_ratio; the spatial dims stay still.

    rate_ratio = video latent frames per second / audio tokens per second (24 / 4 / 25 = 0.24 at full size).
    """
    temporal, *spatial = axis_split(head_dim)
    turning = _angles(torch.arange(tokens, device=device) * rate_ratio, temporal, theta)
    return torch.cat([turning, turning.new_zeros(tokens, sum(spatial) // 2)], dim=1)


def freqs_cis_of(angles: Tensor) -> Tensor:
    """Unit complex numbers [N, 1, d // 2] of fp64 angles [N, d // 2], complex64."""
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]


def rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [B, N, heads, d] by complex freqs_cis [N, 1, d // 2], in fp32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # inductor makes no kernels of complex numbers
        return rotate_pairs(pairs, torch.view_as_real(freqs_cis)).flatten(-2).to(x.dtype)
    return torch.view_as_real(torch.view_as_complex(pairs) * freqs_cis).flatten(-2).to(x.dtype)


def rotate_pairs(pairs: Tensor, freqs_cis: Tensor) -> Tensor:
    """(a + ib)(c + is) spelled out; pairs [B, N, heads, d // 2, 2], freqs_cis [N, 1, d // 2, 2]."""
    (a, b), (c, s) = pairs.unbind(-1), freqs_cis.unbind(-1)
    return torch.stack([a * c - b * s, a * s + b * c], dim=-1)
