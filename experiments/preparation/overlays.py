"""The step on texts that are laid over the picture: subtitles, captions, titles, watermarks of letters.

Without a network: a line of letters is a row of strokes that stand still, much brighter or darker
than what is around them, with plainer pictures above and below. docs/preparing.md says how often it is right.
"""

from __future__ import annotations

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import RawClip, Rejection, beyond

WIDTH = 480  # pixels at which letters are looked for
LOOKED_AT = 5  # pairs of pictures
APART_S = 0.25  # within a pair; a text stands still so long
STROKE = 13  # pixels; wider strokes are none of letters
CONTRAST = 60  # levels above or below the surroundings
STILL_LEVELS = 14
JOIN = (17, 3)  # pixels; gaps between letters and words that are closed
HEIGHT = (8, 64)  # of a line
MIN_ASPECT = 2.5  # width to height
DENSITY = (0.2, 0.85)  # of strokes within a line
AROUND = 0.5  # of its density, at most, above and below it: textures go on there
MIN_RUNS = 0.9  # of strokes along a line, for each of its heights
MIN_RANGE = 80.0  # levels between the dark and the bright of a line
MIN_SHARE_OF_PAIRS = 0.4  # that have text


def lettered(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """Share of the picture that lines of text cover; a clip with more than the limit is rejected."""
    share = text_share(clip.frames, clip.fps)
    clip = clip.measured(text_share=round(share, 4))
    if share > config.max_text_share:
        return beyond("overlay", "text_share", share, config.max_text_share, "there is text on the picture")
    return clip


def text_share(frames: np.ndarray, fps: float) -> float:
    """Share of the picture under lines of text, which enough pairs of uint8 [T, H, W, 3] have."""
    import cv2

    apart = max(1, round(APART_S * fps))
    starts = np.unique(np.linspace(0, max(0, len(frames) - 1 - apart), LOOKED_AT).round().astype(int))
    height, width = frames.shape[1:3]
    size = (WIDTH, max(32, round(height * WIDTH / width)))
    shares = []
    for start in starts:
        pair = [
            cv2.cvtColor(
                cv2.resize(frames[min(place, len(frames) - 1)], size, interpolation=cv2.INTER_CUBIC),
                cv2.COLOR_RGB2GRAY,
            )
            for place in (start, start + apart)
        ]
        lines = text_lines(pair[0], cv2.absdiff(*pair) < STILL_LEVELS)
        shares.append(sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in lines) / (size[0] * size[1]))
    ordered = sorted(shares, reverse=True)
    return float(ordered[max(1, round(MIN_SHARE_OF_PAIRS * len(ordered))) - 1])


def text_lines(grey: np.ndarray, still: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (x0, y0, x1, y1) of lines of letters in uint8 [H, W]; `still`: where nothing moves."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (STROKE, STROKE))
    bright = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, kernel) > CONTRAST
    dark = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, kernel) > CONTRAST
    found: list[tuple[int, int, int, int]] = []
    for strokes in (bright & still, dark & still):
        closed = cv2.morphologyEx(strokes.astype(np.uint8), cv2.MORPH_CLOSE, np.ones(JOIN[::-1], np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
        for x, y, width, height, _ in stats[1:].tolist():
            box = (x, y, x + width, y + height)
            if not any(_overlap(box, other) for other in found) and _is_line(grey, strokes, box):
                found.append(box)
    return found


def _is_line(grey: np.ndarray, strokes: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    x0, y0, x1, y1 = box
    height, width = y1 - y0, x1 - x0
    if not HEIGHT[0] <= height <= HEIGHT[1] or width < MIN_ASPECT * height:
        return False
    inside = strokes[y0:y1, x0:x1]
    density = float(inside.mean())
    room = max(3, height // 2)
    around = np.concatenate([strokes[max(0, y0 - room) : y0, x0:x1], strokes[y1 : y1 + room, x0:x1]])
    if not DENSITY[0] <= density <= DENSITY[1] or (len(around) and around.mean() > AROUND * density):
        return False
    rows = inside[height // 4 : max(height // 4 + 1, 3 * height // 4)].astype(np.int8)
    runs = float((np.diff(rows, axis=1) > 0).sum(axis=1).mean())
    low, high = np.percentile(grey[y0:y1, x0:x1], [10, 90])
    return runs >= MIN_RUNS * width / height and float(high - low) >= MIN_RANGE


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return min(first[2], second[2]) > max(first[0], second[0]) and min(first[3], second[3]) > max(
        first[1], second[1]
    )
