"""Pictures of the clips of a source, in one pass: at the target rate, as the reader of clips shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.preparation.cutting import Piece
from pretrain.media.errors import MediaError
from pretrain.media.limits import MediaLimits
from pretrain.media.passing import PassingPictures
from pretrain.media.picture_times import PictureTimes


@dataclass(frozen=True, eq=False)
class CutPiece:
    """The pictures of a piece. `mended`: as of `pretrain.media.read.Media`."""

    piece: Piece
    frames: np.ndarray  # uint8 [num_frames, H, W, 3]
    mended: Mapping[str, float]


def cut_pieces(
    path: Path,
    pieces: Sequence[Piece],
    shown: PictureTimes,
    fps: float,
    max_side: int,
    limits: MediaLimits,
) -> Iterator[CutPiece]:
    """Pieces in order that do not overlap; one is held at a time. `shown`: of the file's `PassingPictures`.

    A picture whose time is not before the end of its piece is not taken, so that none of the next scene is in
    it. Raises MediaError as `PassingPictures` does.
    """
    waiting = iter(pieces)
    piece, held = next(waiting, None), list[np.ndarray]()
    showing = shown.stretch(piece.start_s, piece.num_frames, fps) if piece else None
    for place, picture in enumerate(PassingPictures(path, limits)):
        reduced: np.ndarray | None = None
        while piece is not None and showing is not None and showing.index[len(held)] == place:
            reduced = _reduced(picture, max_side) if reduced is None else reduced
            held += [reduced] * int((showing.index == place).sum())
            if len(held) < piece.num_frames:
                break
            yield CutPiece(piece, np.stack(held), shown.mended(showing))
            piece, held = next(waiting, None), []
            showing = shown.stretch(piece.start_s, piece.num_frames, fps) if piece else None
        if piece is None:
            return
    if piece is not None:
        raise MediaError(f"{path}: it has fewer pictures than when it was first read; run it again")


def _reduced(picture: np.ndarray, max_side: int) -> np.ndarray:
    if max(picture.shape[:2]) <= max_side:
        return picture
    import cv2

    scale = max_side / max(picture.shape[:2])
    height, width = (max(2, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
