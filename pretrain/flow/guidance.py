"""Factorised guidance: v = v_c + sum of scale * (v_c - v_without), per modality (nava.md, section 4).

A scale has one meaning everywhere: how far to go beyond the fully conditioned velocity, 0 = not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from pretrain.config import FINITE, check_bounds
from pretrain.types import Conditioning, Velocity

VelocityOf = Callable[[Conditioning], Velocity]


@dataclass(frozen=True, kw_only=True)
class GuidanceScales:
    """Scales of the three directions per modality; the defaults are the release's.

    Raises ValueError for one that is not finite.
    """

    text_video: float = 3.0
    text_audio: float = 2.0
    align_video: float = 3.0
    align_audio: float = 2.0
    timbre_video: float = 0.0
    timbre_audio: float = 3.0

    def __post_init__(self) -> None:
        check_bounds(self, {item.name: FINITE for item in fields(self)}, "guidance.")


NO_GUIDANCE = GuidanceScales(**{item.name: 0.0 for item in fields(GuidanceScales)})


def guided_velocity(
    velocity_of: VelocityOf,
    conditioning: Conditioning,
    scales: GuidanceScales,
    negative: Conditioning | None = None,
    joint: bool = True,
    voiced: bool | None = None,
) -> Velocity:
    """Guided velocity of the streams that `velocity_of` predicts.

    `negative` replaces the dropped text in the text direction; `joint`: both modalities
    are present; `voiced`: some sample has a reference voice, None = look. A direction costs
    a forward pass only where its scale is not 0 and it can differ: alignment needs both
    modalities, timbre a reference.
    """
    full = velocity_of(conditioning)
    has_voice = conditioning.voiced if voiced is None else voiced
    directions = (
        (scales.text_video, scales.text_audio, negative or conditioning.without_text, True),
        (scales.align_video, scales.align_audio, conditioning.without_alignment, joint),
        (scales.timbre_video, scales.timbre_audio, conditioning.without_timbre, has_voice),
    )
    video, audio = full.video, full.audio
    for scale_video, scale_audio, weakened, can_differ in directions:
        useful = (scale_video != 0 and full.video is not None) or (
            scale_audio != 0 and full.audio is not None
        )
        if not (can_differ and useful):
            continue
        other = velocity_of(weakened)
        if video is not None and full.video is not None and other.video is not None:
            video = video + scale_video * (full.video - other.video)
        if audio is not None and full.audio is not None and other.audio is not None:
            audio = audio + scale_audio * (full.audio - other.audio)
    return Velocity(video, audio)
