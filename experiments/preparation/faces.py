"""The step on who is seen: faces, and with a sync network whether the face says what is heard."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import RawClip, Rejection, beyond
from experiments.preparation.services import services
from rewards.types import Clip

FACE_FPS = 5.0
MOUTH = (0.2, 0.58, 0.8, 1.0)  # of a face box: x0, y0, x1, y1


def seen_speaking(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """Share of pictures with a face; with a sync network, speech that no face says is rejected.

    Labels: `speaking_face` True, or "not checked" without a network.
    """
    stride = max(1, round(clip.fps / FACE_FPS))
    some = clip.frames[::stride]
    faces = _detector().detect(Clip(None, 16_000, some, clip.fps / stride))
    share = float(np.mean([bool(found) for found in faces]))
    most = max((len(found) for found in faces), default=0)
    clip = clip.measured(face_share=round(share, 4)).labelled(face_visible=share >= 0.5, num_faces=most)
    if share < config.min_face_share:
        return beyond("faces", "face_share", share, config.min_face_share, "no face in enough pictures")
    if services().syncnet is None or not clip.words:
        return clip.labelled(speaking_face="not checked")
    if not any(faces):
        return beyond("sync", "face_share", share, 0.5, "speech without a face in the picture (off screen)")
    return _in_sync(clip, faces, config)


def _in_sync(clip: RawClip, faces: list[list[Any]], config: PrepareConfig) -> RawClip | Rejection:
    score = _sync().score([_with_mouths(clip, faces)])[0]
    if score.reason:
        return Rejection("sync", "sync", None, None, f"lips and sound could not be compared: {score.reason}")
    confidence = next(
        value for name, value in score.parts.items() if name.startswith("sync_c") and "masked" not in name
    )
    offset = float(score.parts["offset_frames"])
    clip = clip.measured(sync_confidence=round(confidence, 4), sync_offset_frames=offset)
    if confidence < config.min_sync_confidence:
        reason = "lips do not go with the sound (dubbed, or spoken off screen)"
        return beyond("sync", "sync_confidence", confidence, config.min_sync_confidence, reason)
    if abs(offset) > config.max_sync_offset_frames:
        limit = config.max_sync_offset_frames
        return beyond("sync", "sync_offset_frames", offset, limit, "lips and sound are too far apart")
    return clip.labelled(speaking_face=True)


def _with_mouths(clip: RawClip, faces: list[list[Any]]) -> Clip:
    """The clip with the mouth of its most seen face, for networks that look at the mouth alone."""
    boxes = np.array([max(found, key=lambda face: face.score).box for found in faces if found])
    x0, y0, x1, y1 = np.median(boxes, axis=0)
    width, height = x1 - x0, y1 - y0
    mouth = (x0 + MOUTH[0] * width, y0 + MOUTH[1] * height, x0 + MOUTH[2] * width, y0 + MOUTH[3] * height)
    tall, wide = clip.frames.shape[1:3]
    limits = (wide, tall, wide, tall)
    box = tuple(
        int(min(limit, max(0, round(float(side))))) for side, limit in zip(mouth, limits, strict=True)
    )
    return Clip(clip.mono, 16_000, clip.frames, clip.fps, mouth_boxes=[box])  # type: ignore[list-item]


def check_network() -> None:
    """Loads the networks that are asked for. Raises FileNotFoundError or ValueError in one line."""
    _detector.cache_clear()
    _sync.cache_clear()
    if services().yunet:
        _detector()
    if services().syncnet:
        _sync()


@cache
def _detector() -> Any:
    from rewards.sync.faces import HaarDetector, YuNetDetector

    try:
        weights = services().yunet
        return YuNetDetector(weights) if weights else HaarDetector()
    except ImportError as error:
        raise ValueError(f"faces: {error}") from None


@cache
def _sync() -> Any:
    from rewards.sync.crops import FaceTracks, MouthBoxes
    from rewards.sync.scorer import SyncReward
    from rewards.sync.syncnet import load_published, load_syncnet
    from rewards.sync.tracking import LATENTSYNC

    place = services().syncnet
    assert place is not None
    if place.is_dir():
        net = load_syncnet(place)
        return SyncReward(net, MouthBoxes(net.args.image_size), name="sync")
    return SyncReward(load_published(place), FaceTracks(_detector(), LATENTSYNC), name="sync")
