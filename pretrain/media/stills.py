"""Still pictures: upright, opaque, eight bits; or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pretrain.media.errors import MediaError, media_errors
from pretrain.media.first_picture import read_first_picture
from pretrain.media.geometry import laid_on_background
from pretrain.media.limits import LOCAL_LIMITS, MediaLimits
from pretrain.media.sniff import check_present, kind_of

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112


def read_image(
    path: str | Path, limits: MediaLimits = LOCAL_LIMITS, formats: tuple[str, ...] = FORMATS
) -> np.ndarray:
    """uint8 [H, W, 3] of a still, or of the first frame of an animation or a video.

    Turned upright by its EXIF orientation, transparent parts laid on white, 16-bit grey scaled to 8,
    CMYK converted; a colour profile is left as it is. Raises MediaError for what is missing, no picture, cut
    off, or beyond `limits` (before it is decoded).
    """
    path = Path(path)
    check_present(path)
    if kind_of(path) != "still":
        return read_first_picture(path, limits)
    with media_errors(path, "a picture"), path.open("rb") as file:
        return decode_still(path, file, limits, formats)


def decode_still(
    path: Path, file: object, limits: MediaLimits, formats: tuple[str, ...] = FORMATS
) -> np.ndarray:
    """`read_image` of an open binary file; `path` is for errors. Also raises what Pillow does."""
    with _opened(file, formats) as image:
        limits.check_picture(path, *image.size)
        image.load()
        return np.asarray(_to_rgb(path, _upright(image)))


def still_size(path: Path, limits: MediaLimits = LOCAL_LIMITS) -> tuple[int, int]:
    """(height, width) of a still as it is shown, from its header; raises MediaError."""
    with media_errors(path, "a picture"), path.open("rb") as file, _opened(file, FORMATS) as image:
        width, height = image.size
        limits.check_picture(path, width, height)
        # Pillow turns a TIFF itself, and reports the size that it will have
        turned = image.format != "TIFF" and _orientation(image) in _TURNED
        return (width, height) if turned else (height, width)


def _opened(file: object, formats: tuple[str, ...]) -> Image.Image:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # `limits` are lower, and name the file
    Image.init()
    built = [name for name in formats if name in Image.OPEN]  # AVIF is not in every build of Pillow
    return Image.open(file, formats=built)  # type: ignore[arg-type]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing of the picture
        return 1


def _upright(image: Image.Image) -> Image.Image:
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = None if image.format == "TIFF" else turns.get(_orientation(image))
    # a transposed copy forgets which palette entry is transparent
    return image if turn is None else _without_palette(image).transpose(turn)


def _without_palette(image: Image.Image) -> Image.Image:
    return image.convert("RGBA") if image.has_transparency_data else image


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        levels = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.round(levels / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise MediaError(f"{path}: 32 bits a pixel, whose range is unknown; save it as 8 or 16 bits")
    if image.has_transparency_data:
        return Image.fromarray(laid_on_background(np.asarray(image.convert("RGBA"))))
    return image.convert("RGB")
