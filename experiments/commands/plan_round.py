"""`nava plan --align`: a round of a recipe's alignment, from the verb's options."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.recipes.base import Recipe


def check_seconds(measured: tuple[str, ...], align: bool) -> None:
    """Raises ValueError for measured seconds where no alignment is planned."""
    if measured and not align:
        raise ValueError("--seconds-per-clip belongs to --align; give that too, or leave it out")


def plan_round(
    recipe: Recipe | None,
    gpus: int,
    context: int,
    replicas: int,
    sizes: dict[str, Any],
    measured: tuple[str, ...],
    speed: dict[str, float],
    price: float,
    as_json: bool,
) -> None:
    """Print the plan of a recipe's alignment, of clips of `sizes` where they are given.

    measured: NAME=SECONDS of a clip. Raises ValueError as `plan_alignment`, and for a flavor (no recipe).
    """
    from experiments.alignment.round_plan import plan_alignment
    from experiments.commands.plan_round_table import show_round
    from pretrain.model.flavors import flavor

    if recipe is None:
        raise ValueError("--align: a flavor has no alignment; give a recipe")
    config, given = recipe.alignment, {key: value for key, value in sizes.items() if value is not None}
    if "frames" in given:
        given["num_frames"] = given.pop("frames")
    spread = {"context": context} if context > 1 else {}
    spread |= {"replicas": replicas} if replicas > 1 else {}
    parallel = dataclasses.replace(config.parallel, **spread)
    config = dataclasses.replace(config, parallel=parallel, **given)
    seconds = dict(_pair(text) for text in measured)
    args = flavor(recipe.pretrain.flavor)
    found = plan_alignment(config, args, gpus, **speed, price=price, seconds_per_clip=seconds)
    print(json.dumps(found, indent=1)) if as_json else show_round(found)


def _pair(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name, float(value if equals else "")
    except ValueError:
        raise ValueError(f"--seconds-per-clip {text}: expected NAME=SECONDS, e.g. wer_whisper=0.2") from None
