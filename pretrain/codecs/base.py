"""Protocols of all codecs, the embedded linear and the full-size ones.

Letters as in `pretrain.types`: B samples, T frames, F latent frames = 1 + (T-1)/4, N samples, L audio tokens
of 640 samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pretrain.prompt import ParsedPrompt
from pretrain.types import PIXELS_PER_LATENT, num_video_latents

if TYPE_CHECKING:
    from torch import Tensor


class EncodedText(NamedTuple):
    """A batch of encoded prompts."""

    states: Tensor  # [B, S, D] float32, zero where padded
    mask: Tensor  # [B, S] bool, True = a real token
    speaker_positions: Tensor  # [B, R] int64, index along S of each span's timbre token; -1 = no such span


class VideoCodec(Protocol):
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> float32 [B, 48, F, H/16, W/16]; ValueError unless T=1+4n, 16 | H, W."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 48, F, h, w] -> uint8 [B, T, H, W, 3]; ValueError for non-finite latents."""
        ...


class AudioCodec(Protocol):
    sample_rate_hz: int  # of both `encode` and `decode`
    channels: int  # 1 or 2: what `encode` keeps apart and `decode_channels` returns

    def encode(self, waveform: Tensor) -> Tensor:
        """Mono [B, N], stereo [B, 2, N] with 2 `channels` -> float32 [B, 128, ceil(N/640)]; checks finite."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> mono [B, L * 640] in -1..1; ValueError for non-finite latents."""
        ...

    def decode_channels(self, latents: Tensor) -> Tensor:
        """[B, 128, L] -> [B, C, L * 640] in -1..1 with the codec's own `channels`, for listening."""
        ...


class TextEncoder(Protocol):
    width: int

    def encode(self, prompts: Sequence[ParsedPrompt]) -> EncodedText: ...

    def check(self, prompt: ParsedPrompt) -> None:
        """Raises ValueError for a prompt that `encode` does not take, without encoding it."""
        ...


class SpeakerEncoder(Protocol):
    name: str  # of the network, as voice rewards name theirs: a conditioner must not be its own metric

    def embed(self, waveform: Tensor) -> Tensor:
        """16 kHz mono [N] -> [192], never all zeros (null reference); ValueError if silent or not finite."""
        ...


@dataclass(frozen=True)
class Codecs:
    """Everything between files and latents.

    codec_id: of the weights that latents belong to; decoder_id: of what turns these into clips, which may
    change without them. "" = not known.
    """

    video: VideoCodec
    audio: AudioCodec
    text: TextEncoder
    speaker: SpeakerEncoder
    codec_id: str
    decoder_id: str = ""


def check_trained_on(codecs: Codecs, codec: Path, facts: Mapping[str, Any], model: Path) -> None:
    """Raises ValueError where the model's facts name another codec; a model without `codec_id` passes."""
    trained_on = facts.get("codec_id", codecs.codec_id)
    if trained_on != codecs.codec_id:
        raise ValueError(
            f"{model}: trained on latents of codec {trained_on}, but {codec} is {codecs.codec_id}; give the "
            "codec it knows"
        )


def check_frames(frames: Tensor) -> None:
    """Raises ValueError unless frames are uint8 [B, T, H, W, 3] with T = 1 + 4n and H, W multiples of 16."""
    if frames.dim() != 5 or frames.shape[-1] != 3 or str(frames.dtype) != "torch.uint8":
        raise ValueError(f"frames: expected uint8 [B, T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    num_video_latents(frames.shape[1])
    height, width = frames.shape[2:4]
    if height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT or not height or not width:
        raise ValueError(
            f"frames of {height}x{width} pixels; height and width must be multiples of {PIXELS_PER_LATENT}"
        )


def check_finite(values: Tensor, what: str) -> None:
    """Raises ValueError when any value is NaN or infinite."""
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise ValueError(
            f"{what}: {bad} of {values.numel()} values are NaN or infinite; check the model or file they "
            "come from"
        )
