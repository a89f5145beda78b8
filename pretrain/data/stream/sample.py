"""One encoded clip and its layout in a shard: tensors under its row's key, with a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# `about`: data_id and meta as JSON bytes
_PARTS = ("video", "audio", "text", "speaker_positions", "speakers", "about")


@dataclass(frozen=True)
class Sample:
    """One encoded clip; None = modality absent. Tensors are float32, `speaker_positions` int64."""

    data_id: str
    video: Tensor | None  # [48, F, h, w]
    audio: Tensor | None  # [128, L]
    # latent frames per second, beside which the audio's 25 tokens per second are rescaled
    video_rate_hz: float
    text: Tensor  # [S, D]
    speaker_positions: Tensor  # [R] index along S of each span's timbre token
    speakers: Tensor  # [R, 192] reference voice of each span; zeros = none
    meta: dict[str, Any] = field(default_factory=dict)


def pack(sample: Sample, latent_dtype: str) -> dict[str, Tensor]:
    """The tensors of a sample as stored. Raises ValueError naming the sample when one is not finite."""
    tensors = {
        "text": sample.text.half(),
        "speaker_positions": sample.speaker_positions,
        "speakers": sample.speakers.float(),
    }
    for name, latents in (("video", sample.video), ("audio", sample.audio)):
        if latents is not None:
            tensors[name] = latents.to(DTYPES[latent_dtype])
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{sample.data_id}: {name} has non-finite values; fit the codec again or drop the row"
            )
    about = json.dumps({"data_id": sample.data_id, "meta": sample.meta}, ensure_ascii=False).encode()
    tensors["about"] = torch.from_numpy(np.frombuffer(about, np.uint8).copy())
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], video_rate_hz: float) -> Sample:
    """The sample back, as float32."""
    about = json.loads(tensors["about"].numpy().tobytes())
    video, audio = (tensors[name].float() if name in tensors else None for name in ("video", "audio"))
    return Sample(
        about["data_id"],
        video,
        audio,
        video_rate_hz,
        tensors["text"].float(),
        tensors["speaker_positions"],
        tensors["speakers"],
        about["meta"],
    )


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over the bytes of a sample's tensors: cheap enough to compare at every read."""
    value = 0
    for name in _PARTS:
        if name in tensors:
            value = zlib.crc32(tensors[name].view(torch.uint8).numpy().data, value)
    return value


def tensor_names(has_video: bool, has_audio: bool) -> list[str]:
    """What a stored sample has."""
    absent = {name for name, there in (("video", has_video), ("audio", has_audio)) if not there}
    return [name for name in _PARTS if name not in absent]
