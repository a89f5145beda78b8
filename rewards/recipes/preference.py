"""The reward that was learned from votes, over the rewards that its model looks at."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.base import Reward
from rewards.options import nearest
from rewards.recipes.base import Shared, WeightsMissing

if TYPE_CHECKING:
    from rewards.preference import PreferenceModel

OWN_NAMES = ("preference", "preference_simulated")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceOptions:
    """A file that `nava gsb fit` wrote, and the options of the rewards its model looks at, by their names in
    the catalog.

    A plug-in, or a reward whose scores have another name than its entry in the catalog, is found when it is
    among `options`.
    """

    model: Path | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def preference(options: PreferenceOptions, shared: Shared) -> Reward:
    """Scores are called `preference_simulated` where no person voted."""
    from rewards.catalog import build_rewards
    from rewards.preference import PreferenceReward

    model, names = _model(options), needed_rewards(options)
    try:
        rewards = build_rewards(names, {name: options.options.get(name, {}) for name in names}, shared)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"preference.options: {error}") from None
    if model.simulated:
        log.warning("preference: %s was fitted to SIMULATED votes; no person was asked", options.model)
    return PreferenceReward(rewards, model)


def needed_rewards(options: PreferenceOptions) -> list[str]:
    """Names by which the catalog opens what the model looks at. Raises FileNotFoundError and ValueError in
    one line: no model or a damaged one, a judge or a preference among its features, options for a reward that
    it does not look at."""
    from rewards.catalog import CATALOG
    from rewards.preference import check_no_judge

    model = _model(options)
    check_no_judge([*model.features, *options.options])
    check_no_preference([*model.features, *options.options])
    bases = dict.fromkeys(name if name in CATALOG else name.partition(".")[0] for name in model.features)
    foreign = [name for name in bases if name not in CATALOG]
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
    return [*(name for name in bases if name in CATALOG), *others]


def check_no_preference(features: Iterable[str]) -> None:
    """Raises ValueError for a preference as a feature of a preference."""
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
