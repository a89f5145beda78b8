"""The sync reward and the published metrics, from one pass over each face and each sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import numpy as np
import torch

from rewards.base import Unscorable, score_prepared
from rewards.pictures import check_lengths
from rewards.sound import SAMPLE_RATE_HZ, mono_16khz
from rewards.sync.crops import CropSource
from rewards.sync.distance import masked_sync_distance, shift_distances, sync_distance
from rewards.sync.inference import Embedder
from rewards.sync.layers import PUBLISHED
from rewards.sync.syncnet import SyncNet
from rewards.sync.windows import WINDOW_FRAMES, num_windows, to_25_fps, windows_of_sound
from rewards.sync.zero_lag import MAX_LAG, zero_lag
from rewards.types import Clip, Score

MIN_WINDOWS = MAX_LAG + 1  # every lag has a pair


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Faces uint8 [n + 4, S, S, 3] with the index of their sound in `sounds`, float32 [>= n, 1, 13, 20]."""

    faces: list[tuple[np.ndarray, int]]
    sounds: list[np.ndarray]


class SyncReward:
    """The zero-lag statistic as `value` (higher is better, 0 for a still face), the mean over a clip's faces.

    Score.parts: `rho_zero` and `expected_lag` of the reward; `sync_c`, `sync_d`, `sync_c_masked` and
    `offset_frames` as rewards.sync.distance defines them; `faces` and `windows`, how many there were. The
    three sync names end in "_mini" for the reduced network, and in the label of the crops for the published
    one where its crops are not the published ones. All are means over faces, but the offset is that of the
    face with the highest Sync-C. NaN with a reason as `crops` and `mono_16khz` say, when no face has 16
    windows (21 frames at 25 fps), and when the lengths of frames and sound differ by more than 0.15 s and 2
    %: then one of the rates is wrong.
    """

    def __init__(
        self,
        net: SyncNet,
        crops: CropSource,
        name: str = "sync_mini",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.name, self.crops = name, crops
        self._embedder = Embedder(net, dtype, device)
        ending = crops.label if net.args == PUBLISHED else net.args.name
        self._ending = f"_{ending}" if ending else ""

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """One answer per clip, in order. Raises ValueError for crops of a size the network was not made
        for."""
        return score_prepared(clips, self._prepare, self._score)

    def _prepare(self, clip: Clip) -> _Prepared:
        sound, crops = mono_16khz(clip), self.crops.crops(clip)
        check_lengths(clip, sound)
        starts = sorted({face.start for face in crops})
        sounds = [sound[round(start * SAMPLE_RATE_HZ / clip.fps) :] for start in starts]
        faces: list[tuple[np.ndarray, int]] = []
        counts = [0] * len(starts)
        for face in crops:
            pixels, place = to_25_fps(face.pixels, clip.fps), starts.index(face.start)
            count = num_windows(len(pixels), len(sounds[place]))
            counts[place] = max(counts[place], count)
            if count >= MIN_WINDOWS:
                faces.append((pixels[: count + WINDOW_FRAMES - 1], place))
        if not faces:
            raise Unscorable(f"{max(counts, default=0)} windows of 0.2 s, at least {MIN_WINDOWS} are needed")
        floor = self._embedder.args.log_floor
        return _Prepared(
            faces, [windows_of_sound(some, floor)[:count] for some, count in zip(sounds, counts, strict=True)]
        )

    def _score(self, clips: list[_Prepared]) -> list[Score]:
        """Run every face and every sound of all clips through the network once, batched together."""
        lips = iter(self._embedder.lips([pixels for clip in clips for pixels, _ in clip.faces]))
        sound_embeddings = iter(self._embedder.sound([windows for clip in clips for windows in clip.sounds]))
        return [
            self._summed_up(
                clip, list(islice(lips, len(clip.faces))), list(islice(sound_embeddings, len(clip.sounds)))
            )
            for clip in clips
        ]

    def _summed_up(
        self, clip: _Prepared, lips: list[np.ndarray], sound_embeddings: list[np.ndarray]
    ) -> Score:
        pairs = [
            (v, sound_embeddings[place][: len(v)]) for v, (_, place) in zip(lips, clip.faces, strict=True)
        ]
        rewards = [zero_lag(v, a) for v, a in pairs]
        distances = [shift_distances(v, a) for v, a in pairs]
        published = [sync_distance(some) for some in distances]
        masked = [masked_sync_distance(some) for some in distances]
        parts = {
            "rho_zero": fmean(reward.rho_zero for reward in rewards),
            "expected_lag": fmean(reward.expected_lag for reward in rewards),
            f"sync_c{self._ending}": fmean(face.confidence for face in published),
            f"sync_d{self._ending}": fmean(face.distance for face in published),
            f"sync_c_masked{self._ending}": fmean(face.confidence for face in masked),
            "offset_frames": float(max(published, key=lambda face: face.confidence).offset_frames),
            "faces": float(len(pairs)),
            "windows": float(sum(len(v) for v, _ in pairs)),
        }
        return Score(value=fmean(reward.value for reward in rewards), parts=parts)
