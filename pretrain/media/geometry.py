"""Decoded pictures as they are meant to be shown: upright, square pixels, opaque, in RGB."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter

from pretrain.media.errors import MediaError
from pretrain.media.limits import MediaLimits

BACKGROUND = (255, 255, 255)  # what is laid under transparent pixels, of stills and of video
MAX_ASPECT = 8.0
_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
_DOLBY_VISION = (14, 15)  # ICtCp and IPT-C2 colour spaces, which swscale does not know
_IDENTITY = (1, 0, 0, 1)
_LARGE = 2**19  # pixels; swscale's threads cost a smaller picture several times its conversion


class PictureConverter:
    """Turns the decoded frames of one stream into uint8 [H, W, 3].

    Turned by the display matrix, scaled in width to square pixels, transparent parts laid on BACKGROUND.
    Raises MediaError for HDR, for rotations other than quarter turns, and where the size changes.
    """

    def __init__(self, path: Path, aspect: float, limits: MediaLimits) -> None:
        self.path, self.aspect, self.limits = path, checked_aspect(path, aspect), limits
        self._scaler = VideoReformatter()  # one for the file: each frame's own would set its tables up anew
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        self._check(frame)
        width = square_width(frame.width, self.aspect)
        deep, transparent = _traits(frame.format.name)
        picture = self._scaler.reformat(
            frame,
            width=width,
            height=frame.height,
            format="rgba" if transparent else "rgb24",
            # 8 bits without scaling have a converter of their own; FFmpeg and OpenCV scale bicubically
            interpolation=Interpolation.BICUBIC if deep or width != frame.width else None,
            threads=1 if frame.width * frame.height < _LARGE else 0,
        ).to_ndarray()
        if transparent:
            picture = laid_on_background(picture)
        matrix = quarter_turn(self.path, frame)
        return picture if matrix == _IDENTITY else turned(picture, matrix)

    def _check(self, frame: av.VideoFrame) -> None:
        size = (frame.width, frame.height)
        if self._size is None:
            self._size = size
            self.limits.check_picture(self.path, square_width(frame.width, self.aspect), frame.height)
        if size != self._size:
            raise MediaError(
                f"{self.path}: its pictures change from {self._size[0]}x{self._size[1]} to "
                f"{size[0]}x{size[1]} pixels; encode it again at one size"
            )
        if frame.color_trc in _HDR or frame.colorspace in _DOLBY_VISION:
            name = _HDR.get(frame.color_trc, "Dolby Vision")
            raise MediaError(f"{self.path}: HDR pictures ({name}); convert them to SDR (BT.709) first")


def shown_size(path: Path, frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """(height, width) of what PictureConverter makes of a frame; raises MediaError as it does."""
    width, height = square_width(frame.width, checked_aspect(path, aspect)), frame.height
    matrix = quarter_turn(path, frame)
    return (height, width) if matrix[0] else (width, height)


def checked_aspect(path: Path, aspect: float) -> float:
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        raise MediaError(f"{path}: pixels {aspect:g} times as wide as high; set its sample aspect ratio")
    return aspect


def square_width(width: int, aspect: float) -> int:
    return max(1, round(width * aspect))


def quarter_turn(path: Path, frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Signs (a, b, c, d) of the frame's display matrix: x' = a x + c y, y' = b x + d y."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _IDENTITY
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    most = max(abs(value) for value in (a, b, c, d))
    signs = tuple(0 if abs(value) <= 0.02 * most else int(np.sign(value)) for value in (a, b, c, d))
    if not most:
        return _IDENTITY
    if [bool(value) for value in signs] not in ([True, False, False, True], [False, True, True, False]):
        raise MediaError(
            f"{path}: pictures turned by {-frame.rotation} degrees; quarter turns are read, encode it upright"
        )
    return signs  # type: ignore[return-value]


def turned(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """[H, W, 3] by the signs of a display matrix."""
    a, b, c, d = matrix
    if a:
        rows, columns, upright = d, a, picture
    else:
        rows, columns, upright = b, c, picture.transpose(1, 0, 2)
    return np.ascontiguousarray(upright[::rows, ::columns])


def laid_on_background(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] -> [H, W, 3]."""
    alpha = picture[..., 3:].astype(np.uint16)
    under = np.array(BACKGROUND, np.uint16)
    return ((picture[..., :3] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _traits(format_name: str) -> tuple[bool, bool]:
    """(more than 8 bits a component, has transparency) of a pixel format."""
    pixel = av.VideoFormat(format_name)
    deep = any(component.bits > 8 for component in pixel.components)
    return deep, pixel.has_palette or any(component.is_alpha for component in pixel.components)
