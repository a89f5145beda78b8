"""First frames that prompts give: checked, read, brought to the clip's size and encoded, for generation and
alignment alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pretrain.clip_kind import ClipSizes, kind_of
from pretrain.codecs.base import Codecs
from pretrain.media.errors import MediaError
from pretrain.media.read import probe
from pretrain.media.stills import read_image
from pretrain.prompt import PromptRow

# exact: refused unless it has the clip's size; crop: filled, its middle kept; pad: whole, with black bars;
# stretch: whole, its shape given up
FrameFit = Literal["exact", "crop", "pad", "stretch"]


def check_first_frames(rows: Iterable[PromptRow], sizes: ClipSizes, fit: FrameFit = "exact") -> None:
    """By the files' headers. Raises ValueError with the row of an unreadable one, with `exact` also of one of
    another size than its clip."""
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
        if fit == "exact" and (height, width) != (kind.height, kind.width):
            raise ValueError(
                f"{row.where} image_path: {row.image_path} has {width}x{height} pixels; resize it to "
                f"{kind.width}x{kind.height}"
            )


def read_first_frames(rows: Iterable[PromptRow]) -> dict[Path, Tensor]:
    """Every first frame read once, upright, uint8 [1, H, W, 3].

    Raises ValueError with the row of a bad one.
    """
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


def fitted(image: np.ndarray, height: int, width: int, fit: FrameFit) -> np.ndarray:
    """uint8 [H, W, 3] of any size -> [height, width, 3], by Lanczos; what has that size comes back as it is.

    Raises ValueError with `exact` for another size.
    """
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image, ImageOps

    picture, size = Image.fromarray(image), (width, height)
    if fit == "crop":
        made = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif fit == "pad":
        made = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=(0, 0, 0))
    elif fit == "stretch":
        made = picture.resize(size, Image.Resampling.LANCZOS)
    else:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels; resize it to {width}x{height}")
    return np.asarray(made)


def _size(path: Path) -> tuple[int, int]:
    """(height, width) as shown. Raises MediaError."""
    info = probe(path)
    if info.height is None or info.width is None:
        raise MediaError(f"{path}: no picture in it; give an image or an mp4")
    return info.height, info.width


def encode_first_frames(
    rows: Sequence[PromptRow],
    images: Mapping[Path, Tensor],
    codecs: Codecs,
    sizes: ClipSizes | None = None,
    fit: FrameFit = "exact",
) -> Tensor | None:
    """[B, 48, 1, H, W] latents of the first frames of rows of one kind; None where none is given.

    sizes: of the clips, to which images are brought by `fit`; without, they are taken as they are.
    """
    given = [images[row.image_path] for row in rows if row.image_path is not None]
    if given and sizes is not None:
        kind = kind_of(rows[0], sizes)
        given = [
            torch.from_numpy(np.array(fitted(image[0].numpy(), kind.height, kind.width, fit)))[None]
            for image in given
        ]
    return codecs.video.encode(torch.stack(given)) if given else None
