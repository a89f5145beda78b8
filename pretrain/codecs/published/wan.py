"""The Wan2.2 video VAE (diffusers' `AutoencoderKLWan`): 48 channels at 4x16x16, standardised latents.

Source of the normalisation: diffusers' Wan pipelines, (mode of the posterior - latents_mean) / latents_std.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.codecs.base import check_finite, check_frames
from pretrain.codecs.published.deferred import on_device
from pretrain.codecs.published.weights import (
    Source,
    check_shapes,
    expect,
    fill,
    read_config,
    shapes_of,
    tensor_shapes,
    weight_files,
)
from pretrain.types import PIXELS_PER_LATENT, VIDEO_CHANNELS

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

SOURCE = Source("the Wan2.2 VAE", "Wan-AI/Wan2.2-TI2V-5B-Diffusers, folder vae", "Apache-2.0")
_SETTINGS = {
    "_class_name": "AutoencoderKLWan",
    "z_dim": VIDEO_CHANNELS,
    "patch_size": 2,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": PIXELS_PER_LATENT,
    "scale_factor_temporal": 4,
}
_PATCH = _SETTINGS["patch_size"]


@dataclass(frozen=True)
class Tiles:
    """Square tiles of a picture, in pixels, blended where they overlap; `size` 0 = the whole picture at once.

    Tiles bound memory. The network's middle attends over a whole frame, so tiles change values, not only near
    seams.
    """

    size: int = 0
    overlap: int = 64

    def __post_init__(self) -> None:
        if self.size % 32 or self.overlap % 32 or not (self.size == 0 or 0 < self.overlap < self.size):
            found = f"tiles of {self.size} pixels that overlap by {self.overlap}"
            raise ValueError(f"{found}; set multiples of 32, the overlap smaller, or size 0")

    def needed(self, height: int, width: int) -> bool:
        return bool(self.size) and max(height, width) > self.size


class WanVideoCodec:
    """Implements `VideoCodec`, loading `network` (the VAE) on first use; clip by clip, results on the CPU."""

    def __init__(
        self,
        network: Callable[[], AutoencoderKLWan],
        encode_tiles: Tiles = Tiles(),
        decode_tiles: Tiles = Tiles(),
    ) -> None:
        self.networks, self._encode_tiles, self._decode_tiles = network, encode_tiles, decode_tiles

    @on_device
    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> float32 [B, 48, 1 + (T-1)/4, H/16, W/16]."""
        check_frames(frames)
        network = self.networks()
        # diffusers measures tiles of pictures in the pixels left after folding 2x2 of them into channels
        self._tile(network, self._encode_tiles, frames.shape[2], frames.shape[3], unit=_PATCH)
        latents = []
        for clip in frames:
            pixels = clip.to(network.device).permute(3, 0, 1, 2)[None].to(network.dtype) / 127.5 - 1.0
            latents.append(network.encode(pixels).latent_dist.mode().float())  # type: ignore[union-attr]
        mean, std = _statistics(network)
        return ((torch.cat(latents) - mean) / std).cpu()

    @on_device
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, 48, F, h, w] -> uint8 [B, T, H, W, 3]."""
        check_finite(latents, "video latents")
        network = self.networks()
        height, width = (PIXELS_PER_LATENT * size for size in latents.shape[3:])
        self._tile(network, self._decode_tiles, height, width, unit=1)
        mean, std = _statistics(network)
        clips = []
        for values in latents:
            scaled = (values[None].to(network.device).float() * std + mean).to(network.dtype)
            pixels = network.decode(scaled).sample[0].float()  # type: ignore[union-attr]
            clips.append(
                ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu()
            )
        return torch.stack(clips)

    @staticmethod
    def _tile(network: AutoencoderKLWan, tiles: Tiles, height: int, width: int, unit: int) -> None:
        network.use_tiling = tiles.needed(height, width)
        if network.use_tiling:
            size, stride = tiles.size // unit, (tiles.size - tiles.overlap) // unit
            network.enable_tiling(size, size, stride, stride)


def check_wan(folder: Path) -> list[Path]:
    """Checked files and settings of a Wan2.2 VAE, no weights read. Raises ValueError or FileNotFoundError."""
    config = read_config(folder, SOURCE)
    expect(config, _SETTINGS, folder, SOURCE)
    if {len(config.get("latents_mean", ())), len(config.get("latents_std", ()))} != {VIDEO_CHANNELS}:
        raise ValueError(
            f"{folder / 'config.json'}: not {SOURCE.what}: latents_mean and latents_std need "
            f"{VIDEO_CHANNELS} values"
        )
    files = weight_files(folder, SOURCE)
    with torch.device("meta"):
        wanted = shapes_of(_build(config))
    check_shapes(tensor_shapes(files, SOURCE), wanted, folder, SOURCE)
    return [folder / "config.json", *files]


def load_wan(folder: Path, dtype: torch.dtype, device: str) -> AutoencoderKLWan:
    """The VAE in evaluation mode. Raises as `check_wan`."""
    check_wan(folder)
    network: Any = fill(_build(read_config(folder, SOURCE)), folder, SOURCE, dtype, device)
    return network


def _build(config: dict[str, Any]) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    return AutoencoderKLWan.from_config(config)


def _statistics(network: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """[1, 48, 1, 1, 1] each, float32."""
    config: Any = network.config
    mean, std = (
        torch.tensor(values, device=network.device).view(1, -1, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return mean, std
