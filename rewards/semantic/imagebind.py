"""IB-Score: ImageBind's cosine of picture and sound, with the user's own ImageBind (arXiv 2305.05665).

The worked example of a plug-in: what a model is fed is written and tested here, the model is handed in.
ImageBind's code and weights are CC BY-NC 4.0 and no package of it is kept, so neither comes with this
project:

    # github.com/facebookresearch/ImageBind
    from imagebind.models.imagebind_model import ModalityType, imagebind_huge

    class Loaded:
        def __init__(self):
            self.model = imagebind_huge(pretrained=True).eval()

        def embed_vision(self, views):
            return self.model({ModalityType.VISION: views})[ModalityType.VISION]

        def embed_audio(self, mels):
            return self.model({ModalityType.AUDIO: mels})[ModalityType.AUDIO]

    ImageBindScore(Loaded()).score(clips)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rewards.base import Unscorable, score_prepared
from rewards.pictures import check_fps, rgb_frames
from rewards.semantic.fbank import RATE_HZ, fbank
from rewards.sound import mono_16khz
from rewards.types import Clip, Score

PIECE_S = 2
SOUND_PIECES, VIDEO_PIECES = 3, 5
FRAMES_PER_PIECE = 2
SIDE = 224
NUM_MELS, NUM_COLUMNS = 128, 204
MEL_MEAN, MEL_STD = -4.268, 9.138
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 4  # clips: 15 views of 224 x 224 each


class ImageBindModel(Protocol):
    """A loaded ImageBind: [B, D] per modality, averaged over views, of any scale."""

    def embed_vision(self, views: Tensor) -> Tensor:
        """float32 [B, 15, 3, 2, 224, 224] -> [B, D]"""
        ...

    def embed_audio(self, mels: Tensor) -> Tensor:
        """float32 [B, 3, 1, 128, 204] -> [B, D]"""
        ...


class ImageBindScore:
    """Cosine of a clip's picture and sound embeddings, -1..1; higher is better (the paper's IB, not x100).

    Views as ImageBind's own loader makes them; av-benchmark's loader (0.5 pictures a second) gives other
    numbers. NaN with a reason without frames or usable sound.
    """

    name = "imagebind_av_cosine"

    def __init__(self, model: ImageBindModel) -> None:
        self._model = model

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, _prepare, self._score)

    @torch.inference_mode()
    def _score(self, pairs: list[tuple[Tensor, Tensor]]) -> list[Score]:
        cosines: list[float] = []
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            seen = self._model.embed_vision(torch.stack([views for views, _ in batch])).float()
            sounds = self._model.embed_audio(torch.stack([mels for _, mels in batch])).float()
            # ImageBind scales its sound embeddings by 20, so they are not of unit length.
            found = torch.nn.functional.cosine_similarity(seen, sounds, dim=-1)
            if found.shape != (len(batch),) or not found.isfinite().all():
                raise ValueError(
                    f"ImageBind: embeddings {list(seen.shape)} and {list(sounds.shape)} have no finite "
                    "cosine per clip"
                )
            cosines.extend(found.tolist())
        return [Score(value=cosine) for cosine in cosines]


def pieces(duration_s: Fraction, count: int) -> list[Fraction]:
    """Starts of `count` 2-second windows, evenly spread from 0 to the last that fits; all 0 if short."""
    last = max(duration_s - PIECE_S, Fraction(0))
    return [last * i / max(count - 1, 1) for i in range(count)]


def sound_views(waveform: np.ndarray) -> Tensor:
    """[N >= 400] at 16 kHz -> float32 [3, 1, 128, 204].

    Columns behind the sound are 0 before scaling, as in ImageBind's loader.
    """
    views = []
    for start in pieces(Fraction(len(waveform), RATE_HZ), SOUND_PIECES):
        piece = waveform[int(start * RATE_HZ) : int((start + PIECE_S) * RATE_HZ)]
        mels = fbank(piece - piece.mean(), NUM_MELS).T[:, :NUM_COLUMNS]
        views.append(np.pad(mels, ((0, 0), (0, NUM_COLUMNS - mels.shape[1]))))
    return (torch.from_numpy(np.stack(views)[:, None]) - MEL_MEAN) / MEL_STD


def video_views(frames: np.ndarray, fps: float) -> Tensor:
    """uint8 [T, H, W, 3] -> float32 [15, 3, 2, 224, 224]: 5 windows of 2 s, 2 frames and 3 square crops each.

    The frames are a window's first and last. The crops lie along the longer side (left, middle, right; top,
    middle, bottom in portrait); a square picture gives three equal ones.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    views = []
    for start in pieces(len(frames) / rate, VIDEO_PIECES):
        first, end = math.ceil(rate * start), min(math.ceil(rate * (start + PIECE_S)), len(frames))
        indices = torch.linspace(first, max(first, end - 1), FRAMES_PER_PIECE).long().numpy()
        views.extend(_crops(_pixels(frames[indices])))
    return torch.stack(views)


def _pixels(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] -> normalised float32 [3, T, h, w], the shorter side 224."""
    pixels = torch.from_numpy(np.array(frames, order="C")).permute(3, 0, 1, 2).float() / 255.0
    height, width = pixels.shape[2:]
    size = (
        (SIDE, math.floor(width / height * SIDE))
        if width >= height
        else (math.floor(height / width * SIDE), SIDE)
    )
    pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values).reshape(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (pixels - mean) / std


def _crops(pixels: Tensor) -> list[Tensor]:
    height, width = pixels.shape[2:]
    middles = math.ceil((height - SIDE) / 2), math.ceil((width - SIDE) / 2)
    along = [(place, middles[1]) for place in (0, middles[0], height - SIDE)]
    across = [(middles[0], place) for place in (0, middles[1], width - SIDE)]
    return [
        pixels[..., top : top + SIDE, left : left + SIDE]
        for top, left in (along if height > width else across)
    ]


def _prepare(clip: Clip) -> tuple[Tensor, Tensor]:
    frames = rgb_frames(clip)
    check_fps(clip)
    if int(frames.max()) == 0:
        raise Unscorable("the pictures are black")
    waveform = mono_16khz(clip)
    return video_views(frames, clip.fps), sound_views(waveform)
