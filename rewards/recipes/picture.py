"""Rewards of the picture alone."""

from __future__ import annotations

from rewards.base import Reward
from rewards.recipes.base import NoOptions, Shared


def identity(options: NoOptions, shared: Shared) -> Reward:
    from rewards.semantic.identity import FirstFrameIdentity

    return FirstFrameIdentity()


def noise_judge(options: NoOptions, shared: Shared) -> Reward:
    from rewards.quality.picture_noise import PictureNoise

    return PictureNoise()
