"""Recipe of the reward learned from votes, on top of the rewards that are its features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.base import Reward
from rewards.options import nearest
from rewards.recipes.base import Entry, WeightsMissing
from rewards.types import split_part

if TYPE_CHECKING:
    from rewards.preference import PreferenceModel

OWN_NAMES = ("preference", "preference_simulated")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceOptions:
    """A file written by `nava gsb fit`, and options of the rewards that are its features, by catalog name.

    A plug-in, or a reward whose scores have another name than its catalog entry, is found only if it is among
    `options`.
    """

    model: Path | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def preference(
    options: PreferenceOptions,
    entries: Mapping[str, Entry],
    build: Callable[[Sequence[str], Mapping[str, Mapping[str, Any]]], list[Reward]],
) -> Reward:
    """The preference model over its feature rewards, built by `build(names, options)`.

    `entries` is the catalog. Scores are named `preference_simulated` if the votes were simulated.
    """
    from rewards.preference import PreferenceReward

    model, names = _model(options), needed_rewards(options, entries)
    try:
        rewards = build(names, {name: options.options.get(name, {}) for name in names})
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"preference.options: {error}") from None
    if model.simulated:
        log.warning("preference: %s was fitted to SIMULATED votes; no person was asked", options.model)
    return PreferenceReward(rewards, model)


def needed_rewards(options: PreferenceOptions, entries: Mapping[str, Entry]) -> list[str]:
    """Catalog names of the rewards that the model uses as features.

    Raises FileNotFoundError and ValueError in one line: no model or a damaged one, a judge or a preference
    among its features, options for a reward that is no feature.
    """
    model = _model(options)
    check_features([*model.features, *options.options], entries)
    bases = dict.fromkeys(split_part(name, entries)[0] for name in model.features)
    foreign = [name for name in bases if name not in entries]
    others = [name for name in options.options if name not in bases]
    if foreign and not others:
        raise ValueError(
            f"preference: {options.model} looks at {foreign[0]!r}, which is not in the catalog; name its "
            "reward under options"
        )
    if others and not foreign:
        raise ValueError(
            f"preference.options.{others[0]}: {options.model} does not look at it; "
            f"{nearest(others[0], bases)}"
        )
    return [*(name for name in bases if name in entries), *others]


def check_features(features: Iterable[str], entries: Mapping[str, Entry]) -> None:
    """Raises ValueError for a feature that is a preference, a judge or a part of one.

    Another statistic of a judge counts as a judge: a judge must never be rewarded.
    """
    judges = [name for name, entry in entries.items() if entry.judge]
    features = list(features)
    for name in features:
        if any(name == judge or name.startswith((f"{judge}.", f"{judge}_")) for judge in judges):
            raise ValueError(
                f"preference: {name!r} is a judge, which must stay out of what is rewarded; fit the model "
                "without it"
            )
    for name in features:
        if name.partition(".")[0] in OWN_NAMES:
            raise ValueError(
                f"preference: {name!r} cannot be a feature of a preference; fit the model without it"
            )


def _model(options: PreferenceOptions) -> PreferenceModel:
    from rewards.preference import PreferenceModel

    if options.model is None:
        raise WeightsMissing("preference: no model; set preference.model=FILE, which `nava gsb fit` writes")
    return PreferenceModel.load(options.model)
