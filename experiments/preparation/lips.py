"""Whether the faces of a clip say what is heard in it, from the embeddings of a sync network.

The statistic is the correlation of picture and sound embeddings at lag 0 (`rewards.sync.zero_lag`). A short
clip can reach a high one by chance, so what decides is its lower confidence bound over the clip, and the
lowest correlation of any of its spans, so that one voice off screen is not outweighed by others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.preparation.records import Stretch
from rewards.sync.distance import masked_sync_distance, shift_distances
from rewards.sync.windows import FPS, WINDOW_FRAMES
from rewards.sync.zero_lag import MAX_LAG

NORMAL_95 = 1.645  # one-sided
STILL = 0.1  # added to the scale, so that a face that hardly moves has no correlation
MIN_SPAN_WINDOWS = 12  # of a span that is judged by itself


@dataclass(frozen=True, eq=False)
class FaceWindows:
    """Embeddings [n, D] of a face and of the sound from picture `start` (at 25 fps) of the clip on."""

    start: int
    lips: np.ndarray
    sound: np.ndarray


@dataclass(frozen=True)
class LipEvidence:
    """What the faces tell. `lag` in frames of 40 ms, positive where the sound comes later than the lips."""

    correlation: float  # at the best lag of those allowed, over the clip
    low: float  # 95 % lower bound of it, by Fisher's z over windows that share no picture; -1..1
    lag: int  # of the best correlation among -15..15
    weakest: float  # lowest correlation of a span, nan where all are too short
    confidence: float  # Sync-C over windows that exist, of the face that speaks most


def lip_evidence(faces: Sequence[FaceWindows], spans: Sequence[Stretch], max_lag: int) -> LipEvidence:
    """Each span is given to the face that fits it best; silence belongs to the nearest span.

    `spans` in seconds of the clip, at least one. Raises ValueError without faces or spans.
    """
    if not faces or not spans:
        raise ValueError("lip_evidence: at least one face and one span are needed")
    parts = [[_part(face, spans, place, max_lag) for face in faces] for place in range(len(spans))]
    chosen = [max(found, key=lambda part: part.best) for found in parts]
    pooled = np.sum([part.products for part in chosen], axis=0)
    power = [float(np.sum(values)) for values in zip(*(part.power for part in chosen), strict=True)]
    count = sum(part.count for part in chosen)
    if not count:
        return LipEvidence(0.0, -1.0, 0, math.nan, 0.0)
    curve = pooled / (math.sqrt(power[0] * power[1]) + STILL * count)
    best = float(curve[MAX_LAG - max_lag : MAX_LAG + max_lag + 1].max())
    sizes = [sum(part.count for part in chosen if part.face is face) for face in faces]
    speaker = faces[int(np.argmax(sizes))]
    return LipEvidence(
        correlation=best,
        low=lower_bound(best, count / WINDOW_FRAMES),
        lag=int(np.argmax(curve)) - MAX_LAG,
        weakest=min((part.best for part in chosen if part.count >= MIN_SPAN_WINDOWS), default=math.nan),
        confidence=masked_sync_distance(shift_distances(speaker.lips, speaker.sound)).confidence,
    )


def lower_bound(correlation: float, count: float) -> float:
    """One-sided 95 % lower bound of a correlation of `count` independent pairs, by Fisher's z; -1 for too few
    pairs.

    >>> round(lower_bound(0.6, 40), 3)
    0.397
    """
    if count <= 3:
        return -1.0
    return math.tanh(math.atanh(min(correlation, 0.9999)) - NORMAL_95 / math.sqrt(count - 3))


@dataclass(frozen=True, eq=False)
class _Part:
    """A face within the windows of one span: sums over them, by lag."""

    face: FaceWindows
    count: int
    products: np.ndarray  # [2 MAX_LAG + 1]
    power: tuple[float, float]
    best: float


def _part(face: FaceWindows, spans: Sequence[Stretch], place: int, max_lag: int) -> _Part:
    centres = (face.start + np.arange(len(face.lips)) + WINDOW_FRAMES / 2) / FPS
    distance = [np.maximum(np.maximum(start - centres, centres - end), 0.0) for start, end in spans]
    rows = np.flatnonzero(np.argmin(distance, axis=0) == place)
    if not len(rows):
        return _Part(face, 0, np.zeros(2 * MAX_LAG + 1), (0.0, 0.0), -1.0)
    lips, sound = _unit(face.lips), _unit(face.sound)
    lips, sound = lips - lips[rows].mean(axis=0), sound - sound[rows].mean(axis=0)
    table = lips[rows] @ sound.T
    products = np.zeros(2 * MAX_LAG + 1)
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        inside = (rows + lag >= 0) & (rows + lag < len(sound))
        products[lag + MAX_LAG] = table[np.flatnonzero(inside), rows[inside] + lag].sum()
    power = float((lips[rows] ** 2).sum()), float((sound[rows] ** 2).sum())
    curve = products / (math.sqrt(power[0] * power[1]) + STILL * len(rows))
    best = float(curve[MAX_LAG - max_lag : MAX_LAG + max_lag + 1].max())
    return _Part(face, len(rows), products, power, best)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
