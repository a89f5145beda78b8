"""A rubric file of `nava score` as the rubric of an alignment."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.scoring.config import RubricFile
from finetune.advantage import Floor
from finetune.recipe import AlignConfig, RubricConfig
from rewards.catalog import CATALOG, check_names, checked_options
from rewards.options import nearest
from rewards.rubric import RubricItem
from rewards.traits import lower_is_better, modality
from rewards.types import split_part

SECTIONS = {"video": "video", "audio": "audio", "both": "sync"}  # route -> field of RubricConfig


def with_rubric(config: AlignConfig, file: RubricFile) -> AlignConfig:
    """The config with the file's rubric; its guardrails and options are put over the config's.

    Weights become positive, and floors the least values of rewards that are higher = better. Raises
    ValueError in one line naming file and key: unknown rewards or options, parts of rewards, normalise other
    than group, a weight of the wrong sign.
    """
    try:
        return _with_rubric(config, file)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None


def _with_rubric(config: AlignConfig, file: RubricFile) -> AlignConfig:
    items = file.rubric.items
    for item in items:
        _check(item)
    names = [item.reward for item in items]
    for name in file.options:
        if name not in names:
            raise ValueError(f"options.{name}: not among the items; {nearest(name, names)}")
    try:
        checked_options(names, file.options)
    except ValueError as error:
        raise ValueError(f"options.{error}") from None
    sections: dict[str, dict[str, float]] = {section: {} for section in SECTIONS.values()}
    for item in items:
        if item.weight:
            sections[SECTIONS[item.route or modality(item.reward)]][item.reward] = abs(item.weight)
    rubric = RubricConfig(
        **sections,  # pyright: ignore[reportArgumentType]
        floors={item.reward: _floor(item, item.floor) for item in items if item.floor is not None},
        watched=tuple(item.reward for item in items if not item.weight),
        allow_prompt_blind=file.allow_prompt_blind,
        advantage=config.rubric.advantage,
    )
    options: dict[str, Any] = dict(config.reward_options)
    for name, given in file.options.items():
        options[name] = {**options.get(name, {}), **given}
    return dataclasses.replace(
        config, rubric=rubric, reward_options=options, guardrails={**config.guardrails, **file.guardrails}
    )


def _check(item: RubricItem) -> None:
    """Raises ValueError for an item that alignment cannot weigh."""
    where = f"items.{item.reward}"
    reward, part = split_part(item.reward, CATALOG)
    if part and reward in CATALOG:
        raise ValueError(
            f"{where}: alignment weighs whole rewards, whose direction is known; name {reward}, and leave "
            "parts to `nava score`"
        )
    try:
        check_names([item.reward])
        lower = lower_is_better(item.reward)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not item.weight:
        return
    if item.normalise != "group":
        raise ValueError(
            f"{where}.normalise: {item.normalise} does not compare the clips of one prompt, which is what "
            "alignment learns from; leave it out, or set group"
        )
    if (item.weight < 0) != lower:
        direction = (
            "lower is better, so give it a negative" if lower else "higher is better, so give it a positive"
        )
        more = (
            "" if reward in CATALOG or lower else "; a class that is better when lower says lower_is_better"
        )
        raise ValueError(f"{where}.weight: {direction} weight{more}")


def _floor(item: RubricItem, floor: float) -> Floor:
    return Floor(floor=floor if item.weight > 0 else -floor, below=item.below)
