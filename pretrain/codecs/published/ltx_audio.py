"""The LTX-2 audio VAE and its vocoder by diffusers: 25 tokens of 128 channels a second, stereo inside.

A token is 8 latent channels x 16 mel bins, channel by channel, standardised by the VAE's own statistics. The
VAE is causal: L tokens are made of the first 4 L - 3 mel frames and decode to as many, so a decoded sound
ends 30 ms early and those are silence. LTX-2 ships a vocoder of 24 kHz, LTX-2.3 one that extends it to 48
kHz; either is brought to 16 kHz, as NAVA's release does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pretrain.codecs.base import check_finite
from pretrain.codecs.published.deferred import on_device
from pretrain.codecs.published.ltx_mel import HOP, NUM_MELS, log_mel
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
from pretrain.types import AUDIO_CHANNELS, AUDIO_SAMPLE_RATE_HZ, AUDIO_SAMPLES_PER_TOKEN

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio

_LICENCE = "LTX-2 Community License"
VAE_SOURCE = Source(
    "the LTX-2 audio VAE", "Lightricks/LTX-2 or an LTX-2.3 in diffusers' layout, folder audio_vae", _LICENCE
)
VOCODER_SOURCE = Source("the LTX-2 vocoder", "the same repository as the audio VAE, folder vocoder", _LICENCE)
_LATENT_CHANNELS, _CHANNELS = 8, 2
_MELS_PER_TOKEN = AUDIO_SAMPLES_PER_TOKEN // HOP
_SETTINGS = {
    "_class_name": "AutoencoderKLLTX2Audio",
    "latent_channels": _LATENT_CHANNELS,
    "mel_bins": NUM_MELS,
    "in_channels": _CHANNELS,
    "output_channels": _CHANNELS,
    "base_channels": AUDIO_CHANNELS,
    "causality_axis": "height",
    "sample_rate": AUDIO_SAMPLE_RATE_HZ,
    "mel_hop_length": HOP,
    "double_z": True,
}
_VOCODERS = ("LTX2Vocoder", "LTX2VocoderWithBWE")


class Networks(NamedTuple):
    """What a sound passes through."""

    vae: AutoencoderKLLTX2Audio
    vocoder: Any  # LTX2Vocoder or LTX2VocoderWithBWE


class LtxAudioCodec:
    """Implements `AudioCodec`. `networks` gives VAE and vocoder when first needed; answers are on the CPU."""

    sample_rate_hz = AUDIO_SAMPLE_RATE_HZ
    channels = _CHANNELS

    def __init__(self, networks: Callable[[], Networks]) -> None:
        self.networks = networks

    @on_device
    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """[B, N] (both channels the same) or [B, 2, N] -> float32 [B, 128, ceil(N / 640)], zero-padded."""
        if (
            waveform.dim() not in (2, 3)
            or (waveform.dim() == 3 and waveform.shape[1] != _CHANNELS)
            or not waveform.shape[-1]
        ):
            raise ValueError(f"waveform: expected [B, N] or [B, 2, N] with N > 0, got {list(waveform.shape)}")
        check_finite(waveform, "waveform")
        vae = self.networks().vae
        stereo = waveform if waveform.dim() == 3 else waveform[:, None].expand(-1, _CHANNELS, -1)
        num_tokens = math.ceil(waveform.shape[-1] / AUDIO_SAMPLES_PER_TOKEN)
        padded = torch.nn.functional.pad(
            stereo.float(), (0, num_tokens * AUDIO_SAMPLES_PER_TOKEN - waveform.shape[-1])
        )
        mel = log_mel(padded.to(vae.device))[:, :, : _MELS_PER_TOKEN * num_tokens]
        posterior: Any = vae.encode(mel.to(vae.dtype)).latent_dist  # type: ignore[union-attr]
        tokens = posterior.mode().float().permute(0, 2, 1, 3).flatten(2)  # [B, L, 8 * 16]
        return (
            ((tokens - vae.latents_mean.float()) / vae.latents_std.float()).transpose(1, 2).cpu().contiguous()
        )

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> mono [B, L * 640] in -1..1, the mean of both channels."""
        return self.decode_channels(latents).mean(1)

    @on_device
    @torch.no_grad()
    def decode_channels(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> stereo [B, 2, L * 640] in -1..1 at 16 kHz."""
        from scipy.signal import resample_poly  # slow to import

        check_finite(latents, "audio latents")
        vae, vocoder = self.networks()
        tokens = (
            latents.to(vae.device).float().transpose(1, 2) * vae.latents_std.float()
            + vae.latents_mean.float()
        )
        cells = tokens.unflatten(2, (_LATENT_CHANNELS, -1)).permute(0, 2, 1, 3)
        mel: Any = vae.decode(cells.to(vae.dtype)).sample  # type: ignore[union-attr]
        waveform = vocoder(mel.to(vocoder.dtype)).float().cpu()
        found = vocoder.config.output_sampling_rate
        if found != AUDIO_SAMPLE_RATE_HZ:
            common = math.gcd(found, AUDIO_SAMPLE_RATE_HZ)
            waveform = torch.from_numpy(
                resample_poly(waveform.numpy(), AUDIO_SAMPLE_RATE_HZ // common, found // common, axis=-1)
            )
        missing = latents.shape[2] * AUDIO_SAMPLES_PER_TOKEN - waveform.shape[-1]
        return torch.nn.functional.pad(waveform, (0, missing)).clamp(-1.0, 1.0)


def check_ltx(folder: Path) -> list[Path]:
    """Checked files and settings of the audio VAE. Raises a one-line ValueError or FileNotFoundError."""
    config = read_config(folder, VAE_SOURCE)
    expect(config, _SETTINGS, folder, VAE_SOURCE)
    return _checked(folder, config, VAE_SOURCE)


def check_vocoder(folder: Path) -> list[Path]:
    """The files of the vocoder, checked as `check_ltx` does; it must make 10 ms of each mel frame."""
    config = read_config(folder, VOCODER_SOURCE)
    if config.get("_class_name") not in _VOCODERS:
        raise ValueError(
            f"{folder / 'config.json'}: _class_name {config.get('_class_name')!r}, expected "
            f"{' or '.join(_VOCODERS)}"
        )
    expect(config, {"in_channels": _CHANNELS * NUM_MELS, "out_channels": _CHANNELS}, folder, VOCODER_SOURCE)
    rate = config.get("input_sampling_rate", config.get("output_sampling_rate"))
    if rate is None or math.prod(config.get("upsample_factors", ())) * AUDIO_SAMPLE_RATE_HZ != HOP * rate:
        raise ValueError(
            f"{folder / 'config.json'}: upsample_factors make no 10 ms of a mel frame at {rate} Hz; not "
            f"{VOCODER_SOURCE.what}"
        )
    return _checked(folder, config, VOCODER_SOURCE)


def load_ltx(vae: Path, vocoder: Path, dtype: torch.dtype, device: str) -> Networks:
    """Both networks in evaluation mode. Raises as `check_ltx` and `check_vocoder`."""
    check_ltx(vae)
    check_vocoder(vocoder)
    networks: list[Any] = [
        fill(_build(read_config(folder, source)), folder, source, dtype, device)
        for folder, source in ((vae, VAE_SOURCE), (vocoder, VOCODER_SOURCE))
    ]
    return Networks(*networks)


def _checked(folder: Path, config: dict[str, Any], source: Source) -> list[Path]:
    files = weight_files(folder, source)
    with torch.device("meta"):
        wanted = shapes_of(_build(config))
    check_shapes(tensor_shapes(files, source), wanted, folder, source)
    return [folder / "config.json", *files]


def _build(config: dict[str, Any]) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    classes: dict[str, Any] = {
        kind.__name__: kind for kind in (AutoencoderKLLTX2Audio, LTX2Vocoder, LTX2VocoderWithBWE)
    }
    return classes[config["_class_name"]].from_config(config)
