"""Pictures of the clips of a source, in one pass: at the target rate, the nearest in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.preparation.cutting import Piece
from pretrain.media.limits import MediaLimits
from pretrain.media.passing import Passing, passing_pictures


def cut_pieces(
    path: Path, pieces: Sequence[Piece], fps: float, max_side: int, limits: MediaLimits
) -> Iterator[tuple[Piece, np.ndarray]]:
    """(piece, uint8 [num_frames, H, W, 3]) for pieces in order that do not overlap; one is held at a time.

    A picture whose time is not within its piece is not taken, so that none of the next scene is in it.
    """
    waiting = iter(pieces)
    piece, held = next(waiting, None), list[np.ndarray]()
    before: Passing | None = None
    for passing in passing_pictures(path, limits):
        passing = Passing(passing.at_s, _reduced(passing.picture, max_side))
        while piece is not None:
            _take(piece, held, fps, before, passing)
            if len(held) < piece.num_frames:
                break
            yield piece, np.stack(held)
            piece, held = next(waiting, None), []
        if piece is None:
            return
        before = passing
    if piece is not None and before is not None:  # the last picture is shown to the end
        held += [before.picture] * (piece.num_frames - len(held))
        yield piece, np.stack(held)


def _take(piece: Piece, held: list[np.ndarray], fps: float, before: Passing | None, passing: Passing) -> None:
    """Add what is shown at the ticks up to `passing`, whichever of the two pictures is nearer."""
    end_s = piece.start_s + piece.num_frames / fps
    while len(held) < piece.num_frames:
        tick = piece.start_s + len(held) / fps
        if passing.at_s < tick - 1e-6:
            return
        late = passing.at_s - tick
        own = before is not None and before.at_s >= piece.start_s - 0.5 / fps
        if before is not None and (passing.at_s > end_s - 1e-6 or (own and tick - before.at_s < late)):
            held.append(before.picture)
        else:
            held.append(passing.picture)


def _reduced(picture: np.ndarray, max_side: int) -> np.ndarray:
    if max(picture.shape[:2]) <= max_side:
        return picture
    import cv2

    scale = max_side / max(picture.shape[:2])
    height, width = (max(2, round(side * scale)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
