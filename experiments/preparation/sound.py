"""The step on the sound of a clip: loudness, clipping and noise."""

from __future__ import annotations

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.records import RawClip, Rejection, beyond
from rewards.loudness import lufs
from rewards.quality.noise import clipped_share, snr_db


def audible(clip: RawClip, config: PrepareConfig) -> RawClip | Rejection:
    """Measures of the sound; a silent, clipped or very noisy clip is rejected."""
    mono, original = clip.mono, clip.waveform.mean(axis=0)
    loudness = lufs(mono, 16_000)
    if loudness < config.min_loudness_lufs or not np.abs(mono).max(initial=0.0):
        return beyond(
            "sound", "loudness_lufs", loudness, config.min_loudness_lufs, "the sound is (nearly) silent"
        )
    share, noise = clipped_share(original), snr_db(mono)
    if share > config.max_clipped_share and float(np.abs(original).max()) > 0.5:
        return beyond("sound", "clipped_share", share, config.max_clipped_share, "the sound is clipped")
    if noise < config.min_snr_db:
        return beyond("sound", "snr_db", noise, config.min_snr_db, "the sound is too noisy")
    return clip.measured(
        loudness_lufs=round(loudness, 2), clipped_share=round(share, 5), snr_db=round(noise, 2)
    )
