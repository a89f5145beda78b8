"""The embedded linear codecs: latent shapes of the full-size ones (48 x 4x16x16, 128 x 25 per second).

Video: the first latent frame is one image (repeated four times), then blocks of 4 frames x 16 x 16 pixels x
RGB, projected to 48. Audio: 4 frames x 64 log-mel bins for each 640 samples, projected to 128; back by fast
Griffin-Lim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pretrain.codecs.base import check_finite, check_frames
from pretrain.codecs.mel import HOP, MEL_FLOOR, NUM_MELS, from_log_mel, log_mel
from pretrain.codecs.projection import LinearProjection
from pretrain.types import (
    AUDIO_SAMPLE_RATE_HZ,
    AUDIO_SAMPLES_PER_TOKEN,
    PIXELS_PER_LATENT,
    VIDEO_FRAMES_PER_LATENT,
    num_video_latents,
)

MEL_FRAMES_PER_TOKEN = AUDIO_SAMPLES_PER_TOKEN // HOP
_LOUDEST_LOG_MEL = math.log(512.0)  # beyond full scale; keeps a wild latent from overflowing

MAX_ITERATIONS = 10_000


class LinearVideoCodec:
    """Implements `VideoCodec`."""

    def __init__(self, projection: LinearProjection) -> None:
        self.projection = projection

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> [B, 48, F, H/16, W/16]."""
        return self.projection.encode(video_blocks(frames)).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 48, F, h, w] -> uint8 [B, T, H, W, 3]; the first frame is the mean of its four copies."""
        check_finite(latents, "video latents")
        size, step = PIXELS_PER_LATENT, VIDEO_FRAMES_PER_LATENT
        blocks = self.projection.decode(latents.float().permute(0, 2, 3, 4, 1))
        batch, length, rows, cols, _ = blocks.shape
        pixels = blocks.view(batch, length, rows, cols, step, size, size, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
        pixels = pixels.reshape(batch, length, step, rows * size, cols * size, 3)
        first, rest = pixels[:, :1].mean(2), pixels[:, 1:].flatten(1, 2)
        return (torch.cat([first, rest], dim=1) * 255.0).round().clamp(0, 255).to(torch.uint8)


class LinearAudioCodec:
    """Implements `AudioCodec`."""

    sample_rate_hz = AUDIO_SAMPLE_RATE_HZ
    channels = 1

    def __init__(self, projection: LinearProjection, num_iterations: int = 16) -> None:
        self.projection = projection
        if not 0 <= num_iterations <= MAX_ITERATIONS:
            raise ValueError(f"griffin_lim_iterations: {num_iterations}; set 0 to {MAX_ITERATIONS}")
        self.num_iterations = num_iterations

    def encode(self, waveform: Tensor) -> Tensor:
        """[B, N] -> [B, 128, ceil(N / 640)]; zeros are appended to a whole token."""
        return self.projection.encode(audio_blocks(waveform)).transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> [B, L * 640] in -1..1."""
        waveform = from_log_mel(self.decode_log_mel(latents), self.num_iterations)
        return waveform / waveform.abs().amax(1, keepdim=True).clamp_min(1.0)

    def decode_channels(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> [B, 1, L * 640]."""
        return self.decode(latents)[:, None]

    def decode_log_mel(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> [B, 64, 4 L] log-mel, clipped to what a sound can have."""
        check_finite(latents, "audio latents")
        blocks = self.projection.decode(latents.float().transpose(1, 2))
        frames = blocks.view(*blocks.shape[:2], MEL_FRAMES_PER_TOKEN, NUM_MELS).flatten(1, 2)
        return frames.transpose(1, 2).clamp(math.log(MEL_FLOOR), _LOUDEST_LOG_MEL)


def video_blocks(frames: Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3] -> float [B, F, H/16, W/16, 4*16*16*3] in 0..1; ValueError for other shapes."""
    size, step = PIXELS_PER_LATENT, VIDEO_FRAMES_PER_LATENT
    check_frames(frames)
    batch, num_frames, height, width, _ = frames.shape
    num_latents = num_video_latents(num_frames)
    repeated = torch.cat([frames[:, :1].expand(-1, step - 1, -1, -1, -1), frames], dim=1)
    pixels = repeated.view(batch, num_latents, step, height // size, size, width // size, size, 3)
    return (
        pixels.permute(0, 1, 3, 5, 2, 4, 6, 7)
        .reshape(batch, num_latents, height // size, width // size, -1)
        .float()
        / 255.0
    )


def audio_blocks(waveform: Tensor) -> Tensor:
    """[B, N] -> [B, ceil(N / 640), 4*64] log-mel; ValueError for other shapes, N = 0 or non-finite values."""
    if waveform.dim() != 2 or not waveform.shape[1]:
        raise ValueError(f"waveform: expected [B, N] with N > 0, got {list(waveform.shape)}")
    check_finite(waveform, "waveform")
    padding = -waveform.shape[1] % AUDIO_SAMPLES_PER_TOKEN
    values = log_mel(torch.nn.functional.pad(waveform.float(), (0, padding))).transpose(1, 2)
    return values.reshape(len(values), -1, MEL_FRAMES_PER_TOKEN * NUM_MELS)
