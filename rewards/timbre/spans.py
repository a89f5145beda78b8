"""Sounds compared by voice encoders: each span of a clip, and its reference."""

from __future__ import annotations

import numpy as np

from rewards.base import Unscorable
from rewards.sound import SAMPLE_RATE_HZ, SILENCE_PEAK, mono_16khz, span_sounds
from rewards.timbre.silence import check_sound
from rewards.types import Clip


def spoken(clip: Clip) -> list[np.ndarray]:
    """16 kHz mono sound of each span (channels are averaged first). Raises Unscorable as `span_sounds` does,
    and for a silent span or one that is nearly so."""
    sounds = span_sounds(clip)
    for index, sound in enumerate(sounds):
        if np.abs(sound).max() < SILENCE_PEAK:
            raise Unscorable(f"span {index} is silent")
        _check(sound, f"span {index}")
    return sounds


def spoken_with_reference(clip: Clip) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(index, sound, reference) of each span that has a reference. Raises Unscorable without any, or for an
    unusable one."""
    if all(reference is None for reference in clip.references):
        raise Unscorable("no reference voice")
    sounds = spoken(clip)
    if len(clip.references) != len(sounds):
        raise Unscorable(f"{len(clip.references)} references for {len(sounds)} spans")
    pairs = zip(sounds, clip.references, strict=True)
    return [
        (index, sound, _reference(index, reference))
        for index, (sound, reference) in enumerate(pairs)
        if reference is not None
    ]


def _reference(index: int, reference: np.ndarray) -> np.ndarray:
    where = f"reference of span {index}"
    try:
        sound = mono_16khz(Clip(reference, SAMPLE_RATE_HZ))
    except Unscorable as error:
        raise Unscorable(f"{where}: {error}") from error
    _check(sound, where)
    return sound


def _check(sound: np.ndarray, where: str) -> None:
    try:
        check_sound(sound)
    except Unscorable as error:
        raise Unscorable(f"{where}: {error}") from error
