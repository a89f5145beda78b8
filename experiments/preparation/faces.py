"""The step on who is seen: faces, and with a sync network whether a face says what is heard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.lips import FaceWindows, LipEvidence, lip_evidence
from experiments.preparation.records import RawClip, Rejection, beyond
from experiments.preparation.services import services
from rewards.base import Unscorable
from rewards.sync.crops import CropSource, FaceTracks, MouthBoxes
from rewards.sync.faces import Detection, HaarDetector, YuNetDetector
from rewards.sync.inference import Embedder
from rewards.sync.layers import PUBLISHED
from rewards.sync.syncnet import load_published, load_syncnet
from rewards.sync.tracking import LATENTSYNC, Tracking, overlap, track_faces
from rewards.sync.windows import FPS, WINDOW_FRAMES, num_windows, to_25_fps, windows_of_sound
from rewards.types import Box, Clip

FACE_FPS = 5.0
MOUTH = (0.2, 0.58, 0.8, 1.0)  # of a face box: x0, y0, x1, y1
MIN_SEEN = 0.2  # of the pictures, of a face whose lips are read
SAME_FACE = 0.3  # overlap of two boxes
MOST_FACES = 4  # whose lips are read
TRACKS = Tracking("prepare", crop_scale=0.4, shots="none", min_iou=0.3, min_frames=1, min_face_px=0.0)
PUBLISHED_CONFIDENCE = 3.0  # limit of the published network where none is given


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
    boxes = mouth_boxes(faces, clip.frames.shape[1:3], clip.fps / stride)
    if not boxes:
        return beyond(
            "sync", "face_share", share, MIN_SEEN, "speech without a face in the picture (off screen)"
        )
    try:
        seen = _read_lips(clip, boxes)
    except Unscorable as error:
        return Rejection("sync", "sync", None, None, f"lips and sound could not be compared: {error}")
    spans = [(span.start_s, span.end_s) for span in clip.spans] or [(0.0, clip.duration_s)]
    limit = math.floor(config.max_sync_offset_frames)
    return _judged(clip, lip_evidence(seen, spans, limit), config)


def _judged(clip: RawClip, found: LipEvidence, config: PrepareConfig) -> RawClip | Rejection:
    clip = clip.measured(
        sync_correlation=round(found.correlation, 4),
        sync_correlation_low=round(found.low, 4),
        sync_confidence=round(found.confidence, 4),
        sync_offset_frames=float(found.lag),
    )
    if abs(found.lag) > config.max_sync_offset_frames:
        limit = config.max_sync_offset_frames
        return beyond("sync", "sync_offset_frames", found.lag, limit, "lips and sound are too far apart")
    published = _network().net_is_published
    least = config.min_sync_confidence
    if least is None and published:
        least = PUBLISHED_CONFIDENCE
    reason = "lips do not go with the sound (dubbed, or spoken off screen)"
    if least is not None and found.confidence < least:
        return beyond("sync", "sync_confidence", found.confidence, least, reason)
    if not published and found.low < config.min_sync_correlation:
        unsure = (
            " or the clip is too short to tell" if found.correlation > 2 * config.min_sync_correlation else ""
        )
        return beyond("sync", "sync_correlation_low", found.low, config.min_sync_correlation, reason + unsure)
    if not published and found.weakest < config.min_sync_of_span:
        reason = "a part of the speech does not go with any lips (spoken off screen)"
        return beyond("sync", "sync_correlation_of_span", found.weakest, config.min_sync_of_span, reason)
    return clip.labelled(speaking_face=True)


def mouth_boxes(faces: Sequence[Sequence[Detection]], size: tuple[int, ...], fps: float) -> list[Box]:
    """The mouths of the faces that are seen in at least a fifth of the pictures, the most seen first.

    `faces`: those of each picture, at `fps`; `size`: height and width. Boxes in pixels, within the picture.
    """
    tracks = sorted(track_faces(faces, TRACKS, fps), key=lambda track: -len(track.boxes))
    found: list[tuple[np.ndarray, int]] = []
    for track in tracks:
        box = np.median(track.boxes, axis=0)
        same = next(
            (i for i, (other, _) in enumerate(found) if overlap(box.tolist(), other.tolist()) > SAME_FACE),
            None,
        )
        if same is None:
            found.append((box, len(track.boxes)))
        else:
            found[same] = (found[same][0], found[same][1] + len(track.boxes))
    return [
        box
        for face, count in sorted(found, key=lambda one: -one[1])[:MOST_FACES]
        if count >= MIN_SEEN * len(faces) and (box := _mouth(face, size))
    ]


def _mouth(face: np.ndarray, size: tuple[int, ...]) -> Box | None:
    x0, y0, x1, y1 = face
    width, height = x1 - x0, y1 - y0
    mouth = (x0 + MOUTH[0] * width, y0 + MOUTH[1] * height, x0 + MOUTH[2] * width, y0 + MOUTH[3] * height)
    tall, wide = size
    limits = (wide, tall, wide, tall)
    left, top, right, bottom = (
        int(min(limit, max(0, round(float(side))))) for side, limit in zip(mouth, limits, strict=True)
    )
    return (left, top, right, bottom) if right > left and bottom > top else None


def _read_lips(clip: RawClip, boxes: list[Box]) -> list[FaceWindows]:
    """Embeddings of each face and of its sound. Raises Unscorable where no face is long enough."""
    network = _network()
    whole = Clip(clip.mono, 16_000, clip.frames, clip.fps, mouth_boxes=tuple(boxes))
    found, longest = [], 0
    for face in network.crops.crops(whole):
        sound = clip.mono[round(face.start * 16_000 / clip.fps) :]
        pixels = to_25_fps(face.pixels, clip.fps)
        count = num_windows(len(pixels), len(sound))
        longest = max(longest, count)
        if count < MIN_WINDOWS:
            continue
        lips = network.embedder.lips([pixels[: count + WINDOW_FRAMES - 1]])[0]
        windows = windows_of_sound(sound, network.embedder.args.log_floor)[:count]
        found.append(
            FaceWindows(
                round(face.start * FPS / clip.fps), lips[:count], network.embedder.sound([windows])[0]
            )
        )
    if not found:
        raise Unscorable(f"{longest} windows of 0.2 s, at least {MIN_WINDOWS} are needed")
    return found


MIN_WINDOWS = 16  # as of the sync reward: every lag has a pair


@dataclass(frozen=True, eq=False)
class _Network:
    crops: CropSource
    embedder: Embedder
    net_is_published: bool


def check_network() -> None:
    """Loads the networks that are asked for. Raises FileNotFoundError or ValueError in one line."""
    _detector.cache_clear()
    _network.cache_clear()
    if services().yunet:
        _detector()
    if services().syncnet:
        _network()


@cache
def _detector() -> Any:
    try:
        weights = services().yunet
        return YuNetDetector(weights) if weights else HaarDetector()
    except ImportError as error:
        raise ValueError(f"faces: {error}") from None


@cache
def _network() -> _Network:
    place = services().syncnet
    assert place is not None
    if place.is_dir():
        net = load_syncnet(place)
        crops: CropSource = (
            FaceTracks(_detector(), LATENTSYNC) if net.args == PUBLISHED else MouthBoxes(net.args.image_size)
        )
        return _Network(crops, Embedder(net), net.args == PUBLISHED)
    return _Network(FaceTracks(_detector(), LATENTSYNC), Embedder(load_published(place)), True)
