"""Models that place clips for `nava curate` (curate.embedding): which clips can stand for each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretrain.data.features import picture_features, sound_features
from pretrain.media.read import Media
from pretrain.media.samples import to_rate

MIN_S = 0.1
SOUND_RATE_HZ = 16_000


class VoiceFeatures:
    """The embedded features and Resemblyzer's voice as a third group: sets of many speakers."""

    def __init__(self) -> None:
        from rewards.timbre.resemblyzer import ResemblyzerEncoder

        self._encoder = ResemblyzerEncoder()

    def embed(self, media: Media) -> Sequence[np.ndarray]:
        """[384], [384], [256]. Raises ValueError for a clip without sound or voice."""
        picture, sound = _parts(media)
        return picture_features(picture), sound_features(sound), self._encoder.embed([sound])[0]


class ClapFeatures:
    """Picture features and CLAP's embedding of the sound, from a folder of laion/clap-htsat-fused."""

    def __init__(self, weights: str, sha256: str = "") -> None:
        from rewards.semantic.clap import ClapEncoder

        self._encoder = ClapEncoder.load(Path(weights), sha256)

    def embed(self, media: Media) -> Sequence[np.ndarray]:
        """[384], [512]. Raises ValueError for a clip without sound."""
        from rewards.semantic.clap import RATE_HZ

        picture, sound = _parts(media)
        return picture_features(picture), self._encoder.embed_sounds(
            [to_rate(sound, SOUND_RATE_HZ, RATE_HZ)]
        )[0]


def _parts(media: Media) -> tuple[np.ndarray, np.ndarray]:
    if media.frames is None or media.waveform is None or len(media.waveform) < MIN_S * SOUND_RATE_HZ:
        raise ValueError("no picture, or less than 0.1 s of sound; take the clip out of the set")
    return media.frames, media.waveform
