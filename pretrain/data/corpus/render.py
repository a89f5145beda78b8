"""Renders the corpus: talking faces, a bouncing ball, a flashing light, camera moves, in vectorised numpy.

A scene is painted once with antialiased shapes (coverage = distance to the edge, in pixels); each frame then
only repaints what moves. Without a camera move a face's mouth box is the same in every
frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pretrain.data.corpus.cast import BACKGROUNDS, CHARACTER_BY_NAME, STATIC, Character, Colour

SIZE = 64
MARGIN = 12  # painted around the picture for the camera to move over
MOUTH_HALF_WIDTH = 7.5
MOUTH_CLOSED, MOUTH_OPEN = 0.9, 6.5  # half heights of the dark interior, pixels at scale 1
LIP = 1.6
INTERIOR: Colour = (46, 12, 18)
LIPS: Colour = (176, 62, 66)
PAN_PIXELS = 9.0  # to either side
ZOOM = 1.35

PixelBox = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two excluded


@dataclass(frozen=True)
class Face:
    """One face of a scene; x, y = centre of the head in pixels."""

    character: str
    x: float
    y: float
    scale: float

    @property
    def mouth(self) -> tuple[float, float]:
        """Centre of the mouth, pixels."""
        return self.x, self.y + 10.5 * self.scale

    @property
    def mouth_box(self) -> PixelBox:
        """Holds the open mouth with its lips."""
        (x, y), half_width = self.mouth, (MOUTH_HALF_WIDTH + LIP) * self.scale
        half_height = (MOUTH_OPEN + LIP) * self.scale
        return (
            int(x - half_width),
            int(y - half_height),
            int(np.ceil(x + half_width)),
            int(np.ceil(y + half_height)),
        )


SINGLE = (32.0, 29.0, 1.0)
LEFT, RIGHT = (16.5, 31.0, 0.72), (47.5, 31.0, 0.72)


def render_faces(
    faces: tuple[Face, ...], background: str, openings: np.ndarray, blinks: np.ndarray, camera: str = STATIC
) -> np.ndarray:
    """uint8 [T, 64, 64, 3]; openings [faces, T] in 0..1 and blinks [faces, T] bool say what moves."""
    margin = 0 if camera == STATIC else MARGIN
    frames = np.repeat(_scene(faces, background, margin)[None], openings.shape[1], axis=0)
    for face, opening, blink in zip(faces, openings, blinks, strict=True):
        _paint_mouth(frames, face, opening, margin)
        _paint_lids(frames, face, blink, margin)
    return _to_pixels(_film(frames, camera) if margin else frames)


def render_ball(heights: np.ndarray, background: str, colour: Colour) -> np.ndarray:
    """uint8 [T, 64, 64, 3]: a ball above a floor; heights [T] in 0 (touches the floor) .. 1."""
    scene = _wall(background, SIZE, 0)
    _paint(scene, np.clip(_grid(SIZE, SIZE, 0.0, 0.0)[1] - 55.0, 0.0, 1.0), _darker(BACKGROUNDS[background]))
    frames = np.repeat(scene[None], len(heights), axis=0)
    column = frames[:, :, 22:42]  # the ball never leaves it
    x, y = _grid(SIZE, 20, -22.0, 0.0)
    centre = 47.0 - heights[:, None, None] * 34.0
    _paint(column, _inside(x - 32.0, y - centre, 8.5, 8.5), colour)
    _paint(column, _inside(x - 29.5, y - centre + 3.0, 2.2, 2.2), _lighter(colour))
    return _to_pixels(frames)


def render_light(brightness: np.ndarray, background: str, colour: Colour) -> np.ndarray:
    """uint8 [T, 64, 64, 3]: a lamp that is dark at brightness 0 and shines at 1 ([T])."""
    frames = np.repeat(_wall(background, SIZE, 0)[None], len(brightness), axis=0)
    x, y = _grid(SIZE, SIZE, 0.0, 0.0)
    level = brightness[:, None, None].astype(np.float32)
    _paint(frames, 0.55 * level * np.clip(1.6 - np.hypot(x - 32.0, y - 32.0) / 20.0, 0.0, 1.0), colour)
    _paint(frames, np.broadcast_to(_inside(x - 32.0, y - 32.0, 14.0, 14.0), frames.shape[:3]), (40, 40, 44))
    _paint(frames, level * _inside(x - 32.0, y - 32.0, 13.0, 13.0), colour)
    return _to_pixels(frames)


def camera_windows(camera: str, num_frames: int) -> np.ndarray:
    """[T, 3]: centre x, centre y (pixels of the static picture) and magnification of each frame."""
    along = np.linspace(-1.0, 1.0, num_frames, dtype=np.float32)
    still, one = np.full(num_frames, SIZE / 2, np.float32), np.ones(num_frames, np.float32)
    if camera.startswith("pan"):
        return np.stack(
            [still + PAN_PIXELS * (along if camera == "pan right" else -along), still, one], axis=1
        )
    if camera.startswith("zoom"):
        grow = (1 + along) / 2 if camera == "zoom in" else (1 - along) / 2
        return np.stack([still, still + 4.0 * grow, ZOOM**grow], axis=1)
    if camera != STATIC:
        raise ValueError(
            f"camera: unknown move {camera!r}; use pan left, pan right, zoom in, zoom out or static"
        )
    return np.stack([still, still, one], axis=1)


@lru_cache(maxsize=64)
def _scene(faces: tuple[Face, ...], background: str, margin: int) -> np.ndarray:
    """float32 [S, S, 3] in 0..255 with closed mouths left out; the caller copies."""
    scene = _wall(background, SIZE + 2 * margin, margin)
    for face in faces:
        _paint_face(scene, face, CHARACTER_BY_NAME[face.character], margin)
    return scene


def _wall(background: str, size: int, margin: int) -> np.ndarray:
    """A plain wall, darker to the bottom; stripes beyond the still picture make camera moves visible."""
    scene = np.empty((size, size, 3), np.float32)
    scene[:] = BACKGROUNDS[background]
    scene *= np.linspace(1.04, 0.9, size, dtype=np.float32)[:, None, None]
    if margin:
        for start in (3, size - 9):
            scene[:, start : start + 6] *= 0.6
    return np.minimum(scene, 255.0)


def _paint_face(scene: np.ndarray, face: Face, who: Character, margin: int) -> None:
    x, y = _grid(len(scene), len(scene), margin, margin)
    x, y = (x - face.x) / face.scale, (y - face.y) / face.scale  # the head's own pixels

    def oval(dx: float, dy: float, half_width: float, half_height: float) -> np.ndarray:
        return _inside(x - dx, y - dy, half_width, half_height, face.scale)

    width, height = who.head_size
    if who.long_hair:
        _paint(scene, oval(0.0, 3.0, width + 6.0, height + 7.0), who.hair)
    _paint(scene, oval(0.0, 45.0, 27.0, 24.0), who.shirt)
    _paint(scene, oval(0.0, 18.0, 6.5, 10.0), _darker(who.skin, 0.86))
    _paint(scene, oval(0.0, -3.5, width + 2.5, height + 1.5) * np.clip(4.0 - y, 0.0, 1.0), who.hair)
    _paint(scene, oval(0.0, 0.0, width, height), who.skin)
    if who.beard:
        _paint(
            scene, oval(0.0, 0.0, width, height) * np.clip(y - 3.5, 0.0, 1.0), _blend(who.skin, who.hair, 0.6)
        )
    _paint(scene, oval(0.0, 0.0, width, height) * np.clip(-11.5 - y + 0.012 * x**2, 0.0, 1.0), who.hair)
    for side in (-1.0, 1.0):
        _paint(scene, oval(side * 6.6, -4.0, 3.1, 2.3), (250, 250, 250))
        _paint(scene, oval(side * 6.4, -4.0, 1.5, 1.7), (40, 40, 60))
        _paint(scene, oval(side * 6.6, -8.2, 3.6, 0.9), _darker(who.hair, 0.8))
    _paint(scene, oval(0.0, 1.0, 1.5, 2.6), _darker(who.skin, 0.86))


def _paint_mouth(frames: np.ndarray, face: Face, opening: np.ndarray, margin: int) -> None:
    x0, y0, x1, y1 = (edge + margin for edge in face.mouth_box)
    patch = frames[:, y0:y1, x0:x1]
    x, y = _grid(y1 - y0, x1 - x0, margin - x0, margin - y0)
    (centre_x, centre_y), scale = face.mouth, face.scale
    half_height = (MOUTH_CLOSED + (MOUTH_OPEN - MOUTH_CLOSED) * opening[:, None, None]) * scale
    x, y = x - centre_x, y - centre_y
    _paint(patch, _inside(x, y, (MOUTH_HALF_WIDTH + LIP) * scale, half_height + LIP * scale), LIPS)
    _paint(patch, _inside(x, y, MOUTH_HALF_WIDTH * scale, half_height), INTERIOR)


def _paint_lids(frames: np.ndarray, face: Face, blink: np.ndarray, margin: int) -> None:
    closed = np.nonzero(blink)[0]
    if not len(closed):
        return
    lid = _darker(CHARACTER_BY_NAME[face.character].skin, 0.82)
    x, y = _grid(frames.shape[1], frames.shape[2], margin, margin)
    for side in (-1.0, 1.0):
        cover = _inside(
            x - face.x - side * 6.6 * face.scale,
            y - face.y + 4.0 * face.scale,
            3.4 * face.scale,
            2.6 * face.scale,
        )
        frames[closed] += cover[None, :, :, None] * (np.asarray(lid, np.float32) - frames[closed])


def _film(frames: np.ndarray, camera: str) -> np.ndarray:
    """Looks at [T, S, S, 3] through the camera: separable linear interpolation, [T, 64, 64, 3]."""
    windows = camera_windows(camera, len(frames))
    rows = _interpolation(windows[:, 1], windows[:, 2], frames.shape[1])
    columns = _interpolation(windows[:, 0], windows[:, 2], frames.shape[2])
    size = frames.shape[1]
    seen = np.matmul(rows, frames.reshape(len(frames), size, size * 3)).reshape(len(frames), SIZE, size, 3)
    return np.matmul(columns[:, None], seen)


def _interpolation(centre: np.ndarray, magnification: np.ndarray, size: int) -> np.ndarray:
    """[T, 64, S] weights that sum to 1 along S."""
    offsets = (np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2) / magnification[:, None]
    source = centre[:, None] + offsets - 0.5 + MARGIN
    return np.maximum(0.0, 1.0 - np.abs(source[:, :, None] - np.arange(size, dtype=np.float32)))


def _grid(height: int, width: int, origin_x: float, origin_y: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, x [1, W] and y [H, 1], counted from the origin."""
    return (np.arange(width, dtype=np.float32) + 0.5 - origin_x)[None], (
        np.arange(height, dtype=np.float32) + 0.5 - origin_y
    )[:, None]


def _inside(
    x: np.ndarray, y: np.ndarray, half_width: float, half_height: float | np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """Coverage 0..1 of an ellipse at the origin, by the first-order distance f / |grad f|."""
    u, v = x / half_width, y / half_height
    squared = u * u + v * v
    slope = 2.0 * np.sqrt((u / half_width) ** 2 + (v / half_height) ** 2) + 1e-6
    return np.clip(0.5 + scale * (1.0 - squared) / slope, 0.0, 1.0)


def _paint(picture: np.ndarray, coverage: np.ndarray, colour: Colour) -> None:
    picture += coverage[..., None] * (np.asarray(colour, np.float32) - picture)


def _darker(colour: Colour, factor: float = 0.75) -> Colour:
    return _blend((0, 0, 0), colour, factor)


def _lighter(colour: Colour) -> Colour:
    return _blend(colour, (255, 255, 255), 0.6)


def _blend(low: Colour, high: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _to_pixels(frames: np.ndarray) -> np.ndarray:
    return np.clip(frames + 0.5, 0.0, 255.0).astype(np.uint8)
