"""`nava plan --align`: a round of a recipe's alignment, from the verb's options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.commands.plan_setups import PlanOptions
    from experiments.recipes.base import Recipe


def check_round(measured: tuple[str, ...], align: bool, work: str | None, dry_run: bool, data: float) -> None:
    """Raises ValueError for measured seconds where no round is planned, and for what a round has not.

    data: what was said of a data set, 0 = nothing.
    """
    if measured and not align:
        raise ValueError("--seconds-per-clip belongs to --align; give that too, or leave it out")
    if align and work not in (None, "align"):
        raise ValueError(f"--align plans a round of an alignment, not --work {work}; leave one of them out")
    if dry_run and (align or work not in (None, "train")):
        raise ValueError(
            f"--dry-run: of a training, not of {'--align' if align else f'--work {work}'}; leave one out"
        )
    if align and data:
        raise ValueError("--clips and --encode-pixels-per-s: of a training, not of --align; leave them out")


def plan_round(
    recipe: Recipe | None,
    options: PlanOptions,
    sizes: dict[str, Any],
    measured: tuple[str, ...],
    speed: dict[str, float],
    price: float,
    as_json: bool,
) -> None:
    """Print the plan of a recipe's alignment with `options`, of clips of `sizes` where they are given.

    measured: NAME=SECONDS of a clip. Raises ValueError as `plan_alignment`, and for a flavor (no recipe).
    """
    from experiments.alignment.round_plan import plan_alignment
    from experiments.commands.plan_assumptions import recipe_lines
    from experiments.commands.plan_round_table import show_round
    from experiments.commands.plan_setups import align_config
    from pretrain.model.flavors import flavor

    if recipe is None:
        raise ValueError("--align: a flavor has no alignment; give a recipe")
    given = {key: value for key, value in sizes.items() if value is not None}
    if "frames" in given:
        given["num_frames"] = given.pop("frames")
    config = align_config(recipe, options, **given)
    found = plan_alignment(
        config,
        flavor(recipe.pretrain.flavor),
        options.gpus,
        **speed,
        price=price,
        seconds_per_clip=dict(_pair(text) for text in measured),
        parked=options.parked,
        parked_rewards=recipe.reward_files.parked,
    )
    found["assumptions"] += recipe_lines(recipe, "align")
    print(json.dumps(found, indent=1)) if as_json else show_round(found)


def _pair(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name, float(value if equals else "")
    except ValueError:
        raise ValueError(f"--seconds-per-clip {text}: expected NAME=SECONDS, e.g. wer_whisper=0.2") from None
