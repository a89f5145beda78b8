"""The linear codec's folder: three safetensors (video, audio, speaker), config.json and errors.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pretrain.codecs.base import Codecs
from pretrain.codecs.linear import LinearAudioCodec, LinearVideoCodec
from pretrain.codecs.projection import LinearProjection
from pretrain.codecs.speaker import SpectralSpeakerEncoder
from pretrain.codecs.text import HashedTextEncoder
from pretrain.files import save_tensors, write_json

_PARTS = ("video", "audio", "speaker")


def save_linear(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    text: Mapping[str, Any],
    griffin_lim_iterations: int,
) -> str:
    """Writes weights and config; returns the codec id, a hash of all that shapes latents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PARTS:
        save_tensors(parts[name], folder / f"{name}.safetensors")
    contents = {name: (folder / f"{name}.safetensors").read_bytes() for name in _PARTS}
    codec_id = _codec_id(contents, text)
    config = {
        "kind": "linear",
        "codec_id": codec_id,
        "griffin_lim_iterations": griffin_lim_iterations,
        "text": dict(text),
    }
    write_json(folder / "config.json", config, indent=1)
    return codec_id


def load_linear(folder: Path, config: Mapping[str, Any]) -> Codecs:
    """Codecs of a folder of kind `linear`; ValueError for missing or damaged files or another fit's."""
    contents, parts = {}, {}
    for name in _PARTS:
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: part of the codec is missing; run `nava codec` again")
        contents[name] = path.read_bytes()
        try:
            parts[name] = load(contents[name])
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); run `nava codec` again") from None
    try:
        text, iterations, codec_id = config["text"], config["griffin_lim_iterations"], config["codec_id"]
        found = _codec_id(contents, text)
        if found != codec_id:
            raise ValueError(
                f"{folder}: the weights are of codec {found}, config.json says {codec_id}; run `nava codec` "
                "again"
            )
        return Codecs(
            video=LinearVideoCodec(
                LinearProjection.from_tensors(parts["video"], f"{folder / 'video.safetensors'}")
            ),
            audio=LinearAudioCodec(
                LinearProjection.from_tensors(parts["audio"], f"{folder / 'audio.safetensors'}"), iterations
            ),
            text=HashedTextEncoder(**text),
            speaker=SpectralSpeakerEncoder.from_tensors(parts["speaker"]),
            codec_id=codec_id,
            decoder_id=_decoder_id(contents, iterations),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: not a linear codec's config ({error}); run `nava codec` again"
        ) from None


def _decoder_id(contents: Mapping[str, bytes], iterations: int) -> str:
    digest = hashlib.sha256(json.dumps({"griffin_lim_iterations": iterations}).encode())
    for name in ("video", "audio"):
        digest.update(contents[name])
    return digest.hexdigest()[:16]


def _codec_id(contents: Mapping[str, bytes], text: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(text), sort_keys=True).encode())
    for name in _PARTS:
        digest.update(contents[name])
    return digest.hexdigest()[:16]
