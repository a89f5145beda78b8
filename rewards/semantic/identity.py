"""Similarity of a clip to its first-frame image by local colours and edges; no model, no weights.

A proxy for ID (DINOv3 in Verse-Bench): it compares clothes, hair, skin and background, not identity. Moving
faces and cameras lower it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rewards.base import Unscorable, score_prepared
from rewards.pictures import visible_frames
from rewards.types import Clip, Score

SIDE, CELLS = 64, 8  # pictures are brought to 64 x 64 pixels and described in 8 x 8 cells
ANGLES = 6
DARK = 0.05  # of full scale: below it, hue is noise
NEUTRAL = 0.1  # regulariser that keeps pictures without colour or edges comparable: two of them are similar
BLACK = 8  # grey levels; an encoded black frame stays below
MAX_ASPECT_CHANGE = 1.1
BATCH = 64


class FirstFrameIdentity:
    """Mean similarity of the frames to `clip.first_frame`, -1..1, 1 = same picture; higher is better.

    Half is the cosine of the cells' colours (brightness divided out), half that of the edges' directions and
    strengths. Score.parts: `colour`, `edges` and `lowest`, the least alike frame. NaN with a reason without
    first frame, for fewer than 2 frames, black ones and other than uint8 RGB, and where the two differ in
    aspect ratio by more than 10 %.
    """

    name = "identity_colour_edge"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, _pictures, lambda pairs: [_score(*pair) for pair in pairs])


def describe(pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 [T, H, W, 3] -> colours [T, 129] and edges [T, 385], both of unit length."""
    colours, edges = zip(
        *(_describe(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)), strict=True
    )
    return torch.cat(colours), torch.cat(edges)


def _describe(pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.array(pictures, order="C")).permute(0, 3, 1, 2).float() / 255.0
    pixels = torch.nn.functional.interpolate(pixels, size=(SIDE, SIDE), mode="area")
    red, green, blue = torch.nn.functional.adaptive_avg_pool2d(pixels, CELLS).unbind(dim=1)
    colours = torch.stack([red - green, (red + green) / 2 - blue], dim=1) / (
        red + green + blue + DARK
    ).unsqueeze(1)

    luma = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    down, right = torch.gradient(luma / (luma.mean(dim=(1, 2), keepdim=True) + DARK), dim=(1, 2))
    # an edge has no sign, so angles are periodic: index ANGLES wraps to 0
    angle = torch.atan2(down, right) * (ANGLES / math.pi)
    apart = (angle.unsqueeze(1) - torch.arange(ANGLES).reshape(1, -1, 1, 1) + ANGLES / 2).remainder(
        ANGLES
    ) - ANGLES / 2
    strength = torch.hypot(down, right).unsqueeze(1) * (1.0 - apart.abs()).clamp(min=0.0)
    edges = torch.nn.functional.adaptive_avg_pool2d(strength, CELLS).sqrt().flatten(1)
    return _unit(colours.flatten(1)), _unit(edges - edges.mean(dim=1, keepdim=True))


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(
        torch.nn.functional.pad(features.double(), (0, 1), value=NEUTRAL), dim=1
    )


def _pictures(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    if clip.first_frame is None:
        raise Unscorable("no first frame to compare with")
    frames, first = visible_frames(clip), np.asarray(clip.first_frame)
    if first.dtype != np.uint8 or first.ndim != 3 or first.shape[2] != 3 or not first.size:
        raise Unscorable(
            f"the first frame must be uint8 [H, W, 3] RGB, got {first.dtype} {list(first.shape)}"
        )
    if int(first.max()) < BLACK:
        raise Unscorable("the first frame is black")
    (height, width), (height0, width0) = frames.shape[1:3], first.shape[:2]
    change = (width * height0) / (height * width0)
    if not 1 / MAX_ASPECT_CHANGE <= change <= MAX_ASPECT_CHANGE:
        raise Unscorable(
            f"the first frame is {width0}x{height0}, the frames are {width}x{height}; crop it as the "
            "model's input was"
        )
    return frames, first[None]


def _score(frames: np.ndarray, first: np.ndarray) -> Score:
    colour, edges = (
        ((seen * wanted).sum(dim=1)) for seen, wanted in zip(describe(frames), describe(first), strict=True)
    )
    alike = (colour + edges) / 2
    parts = {"colour": float(colour.mean()), "edges": float(edges.mean()), "lowest": float(alike.min())}
    return Score(value=float(alike.mean()), parts=parts)
