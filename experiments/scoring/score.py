"""Score decoded clips; shared by clips of files, of latents and of generated sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.scoring.faults import RewardBroken, answered
from pretrain.config import one_line
from rewards.base import Reward
from rewards.guardrails import GuardrailLimits, flags, measure_guardrails
from rewards.types import Clip, Score, split_part


@dataclass(frozen=True)
class ScoredClip:
    """`scores` by reward name. A guardrail that could not be measured is NaN; {} = none requested."""

    scores: Mapping[str, Score]
    guardrails: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # one text for each limit that the clip is beyond

    def value(self, feature: str) -> float:
        """Value of a reward or `reward.part`; NaN if not scored.

        Raises KeyError for a reward that did not run and an unknown part.
        """
        name, part = split_part(feature, self.scores)
        score = self.scores[name]
        return math.nan if score.reason else score.parts[part] if part else score.value


def score_clips(
    rewards: Mapping[str, Reward], clips: Sequence[Clip], limits: GuardrailLimits | None = None
) -> list[ScoredClip]:
    """Each clip with its scores, and guardrails if `limits` are given. Raises ValueError as `scores_of`."""
    columns = {name: scores_of(name, reward, clips) for name, reward in rewards.items()}
    scored = [{name: column[place] for name, column in columns.items()} for place in range(len(clips))]
    if limits is None:
        return [ScoredClip(scores) for scores in scored]
    return [ScoredClip(scores, *guarded(clip, limits)) for scores, clip in zip(scored, clips, strict=True)]


def scores_of(name: str, reward: Reward, clips: Sequence[Clip]) -> list[Score]:
    """One score per clip.

    Raises ValueError in one line, naming the reward and the clip, if it raised or did not return one score
    per clip.
    """
    try:
        return answered(name, reward, clips)
    except RewardBroken:
        raise
    except Exception as error:
        where = _at_fault(reward, clips)
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"reward {name} failed on {where}: {what}") from error


def _at_fault(reward: Reward, clips: Sequence[Clip]) -> str:
    """The first clip that the reward raises on when it is alone."""
    for clip in clips:
        try:
            reward.score([clip])
        except Exception:
            return clip.name or "a clip"
    return f"{len(clips)} clips at once (from {clips[0].name}), on none of them alone"


def guarded(clip: Clip, limits: GuardrailLimits) -> tuple[dict[str, float], tuple[str, ...]]:
    """Guardrails of a clip and its violated limits."""
    measured = measure_guardrails(clip)
    return measured, flags(measured, limits)
