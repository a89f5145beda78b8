"""What a model has seen of lengths, sizes and speech, for a warning where more is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.stream.index import LatentIndex
from pretrain.storage import local_file
from pretrain.types import AUDIO_TOKENS_PER_S, PIXELS_PER_LATENT, VIDEO_FRAMES_PER_LATENT

MAX_SIZES = 256  # kept of a model's many
_COLUMNS = ("frames", "height", "width", "tokens", "text", "spans", "video_rate_hz")


def trained_on(sets: Iterable[Path], before: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Of encoded sets, and of the model that a training began with.

    {"num_frames": [least, most], "fps": [...], "sizes": ["WIDTHxHEIGHT", ...] in pixels, "sound_s": [least,
    most], "text_tokens": most, "spans": most}; what no clip has is left out. Raises OSError.
    """
    found = dict(before)
    for folder in sets:
        with local_file(folder / "index.arrow") as path:
            for columns in LatentIndex(path).columns(*_COLUMNS):
                found = _with(found, dict(zip(_COLUMNS, columns, strict=True)))
    return found


def _with(found: Mapping[str, Any], of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    seen, sounds = of["frames"] > 0, of["tokens"] > 0
    merged = dict(found)
    if seen.any():
        frames = 1 + VIDEO_FRAMES_PER_LATENT * (of["frames"][seen] - 1)
        merged["num_frames"] = _range(found.get("num_frames"), frames)
        rates = np.unique(of["video_rate_hz"][seen]) * VIDEO_FRAMES_PER_LATENT
        merged["fps"] = sorted({*found.get("fps", []), *(round(float(rate), 6) for rate in rates)})
        pairs = np.unique(np.stack([of["width"][seen], of["height"][seen]], 1), axis=0) * PIXELS_PER_LATENT
        sizes = {*found.get("sizes", []), *(f"{width}x{height}" for width, height in pairs.tolist())}
        merged["sizes"] = sorted(sizes)[:MAX_SIZES]
    if sounds.any():
        seconds = of["tokens"][sounds] / AUDIO_TOKENS_PER_S
        merged["sound_s"] = [round(float(value), 3) for value in _range(found.get("sound_s"), seconds)]
    for key, column in (("text_tokens", "text"), ("spans", "spans")):
        if len(of[column]):
            merged[key] = max(found.get(key, 0), int(of[column].max()))
    return merged


def _range(found: list | None, values: np.ndarray) -> list:
    least, most = values.min().item(), values.max().item()
    return [min(found[0], least), max(found[1], most)] if found else [least, most]
