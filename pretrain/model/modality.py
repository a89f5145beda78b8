"""Which of a model's weights belong to one modality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

WeightModality = Literal["video", "audio", "shared"]


def modalities_of(names: Iterable[str]) -> dict[str, WeightModality]:
    """Of each parameter, by the names of all of them; those of an adapter belong to their layer's modality.

    A part whose name has `audio` is the sound's, one with `video`, or with a twin of the same name that ends
    in `_audio`, the picture's; the rest is shared.
    """
    paths = [tuple(name.split(".")) for name in names]
    parts = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    return {".".join(path): _modality(path, parts) for path in paths}


def _modality(path: tuple[str, ...], parts: set[tuple[str, ...]]) -> WeightModality:
    if any("audio" in part for part in path):
        return "audio"
    twins = ((*path[:at], f"{part}_audio") for at, part in enumerate(path))
    return "video" if any("video" in part for part in path) or parts & set(twins) else "shared"
