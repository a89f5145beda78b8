"""First frames that prompts give: checked, read and encoded, for generation and alignment alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.clip_kind import ClipSizes, kind_of
from pretrain.codecs.base import Codecs
from pretrain.media.errors import MediaError
from pretrain.media.read import probe
from pretrain.media.stills import read_image
from pretrain.prompt import PromptRow


def check_first_frames(rows: Iterable[PromptRow], sizes: ClipSizes) -> None:
    """By the files' headers. Raises ValueError with the row of an unreadable or misshapen one."""
    known: dict[Path, tuple[int, int]] = {}
    for row in rows:
        if row.image_path is None:
            continue
        try:
            if row.image_path not in known:
                known[row.image_path] = _size(row.image_path)
        except ValueError as error:
            raise ValueError(f"{row.where} image_path: {error}") from None
        (height, width), kind = known[row.image_path], kind_of(row, sizes)
        if (height, width) != (kind.height, kind.width):
            raise ValueError(
                f"{row.where} image_path: {row.image_path} has {width}x{height} pixels; resize it to "
                f"{kind.width}x{kind.height}"
            )


def read_first_frames(rows: Iterable[PromptRow]) -> dict[Path, Tensor]:
    """Every first frame read once, uint8 [1, H, W, 3]; raises ValueError with the row of a bad one."""
    images: dict[Path, Tensor] = {}
    for row in rows:
        if row.image_path is None or row.image_path in images:
            continue
        try:
            image = read_image(row.image_path)
        except ValueError as error:
            raise ValueError(f"{row.where} image_path: {error}") from None
        images[row.image_path] = torch.from_numpy(np.array(image[None]))
    return images


def _size(path: Path) -> tuple[int, int]:
    """(height, width) as shown. Raises MediaError."""
    info = probe(path)
    if info.height is None or info.width is None:
        raise MediaError(f"{path}: no picture in it; give an image or an mp4")
    return info.height, info.width


def encode_first_frames(
    rows: Sequence[PromptRow], images: Mapping[Path, Tensor], codecs: Codecs
) -> Tensor | None:
    """[B, 48, 1, H, W] latents of the first frames of rows of one kind; None where none is given."""
    given = [images[row.image_path] for row in rows if row.image_path is not None]
    return codecs.video.encode(torch.stack(given)) if given else None
