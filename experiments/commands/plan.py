"""`nava plan`: what a model costs before it is trained, and a dry run of the whole on one CPU."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal

import tyro

from experiments.commands.options import Settings


def plan(
    flavor: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="a recipe, or a flavor of the model")
    ],
    /,
    gpus: int = 8,
    frames: int = 145,
    height: int = 704,
    width: int = 1280,
    fps: float = 24.0,
    context: Annotated[int, tyro.conf.arg(help="GPUs that share the tokens of a clip")] = 1,
    replicas: Annotated[int, tyro.conf.arg(help="groups of GPUs that each hold all shards")] = 1,
    checkpointing: Literal["none", "selective", "full"] = "full",
    local_batch: int = 1,
    mfu: Annotated[float, tyro.conf.arg(help="share of the peak that the step is taken to reach")] = 0.4,
    peak_tflops: Annotated[
        float, tyro.conf.arg(help="of one GPU; 989 is an H100 or H200 in dense bf16")
    ] = 989.0,
    dry_run: Annotated[
        bool, tyro.conf.arg(help="build, shard and run one step on one CPU, with pretended ranks")
    ] = False,
    settings: Settings = (),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Parameters, tokens, FLOPs, memory per GPU by part, the largest batch that fits 80 and 141 GB, and
    predicted days.

    NAME is a recipe (its stages give the days) or a flavor. Nothing is allocated. With --dry-run the model is
    also built, cut into the shards of one rank among --gpus, and taken through one step of a tiny clip with
    pretended collectives.
    """
    from pretrain.model.flavors import flavor as args_of
    from pretrain.model.plan import assumptions, clip_shape, step_seconds
    from pretrain.model.plan import plan as count
    from pretrain.plan_schedule import plan_schedule

    config = _pretraining(flavor, settings)
    name = config.flavor if config else flavor
    found = count(
        name,
        gpus,
        frames,
        height,
        width,
        fps,
        context=context,
        replicas=replicas,
        checkpointing=checkpointing,
        local_batch=local_batch,
        ema=not config or config.ema_decay > 0,
    )
    step_seconds(1.0, gpus, mfu, peak_tflops)
    if config:
        found["time"] = plan_schedule(
            config, clip_shape(args_of(name), frames, height, width, fps), gpus, mfu, peak_tflops
        )
    found["assumptions"] = assumptions(checkpointing, mfu, peak_tflops)
    if dry_run:
        found["dry_run"] = _rehearsed(name, config, gpus, context, replicas, checkpointing)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from experiments.commands.plan_table import show

    show(found)


def _pretraining(name: str, settings: tuple[str, ...]) -> Any:
    """The pretraining section of the recipe called `name`, None where only a flavor is called so."""
    from experiments.recipes.load import load_recipe, shipped_recipes
    from pretrain.model.flavors import FLAVORS

    if "." in name or name in shipped_recipes():
        return load_recipe(name, None, settings).pretrain
    if settings:
        raise ValueError(
            f"--set: {name} is a flavor and has nothing to set; give a recipe: {', '.join(shipped_recipes())}"
        )
    if name not in FLAVORS:
        from pretrain.config import nearest

        raise ValueError(
            f"unknown recipe or flavor {name!r}; {nearest(name, [*FLAVORS, *shipped_recipes()])}"
        )
    return None


def _rehearsed(
    name: str, config: Any, gpus: int, context: int, replicas: int, checkpointing: str
) -> dict[str, Any]:
    from pretrain.dry_run import rehearse
    from pretrain.recipe import PretrainConfig

    base = config or dataclasses.replace(PretrainConfig(), flavor=name)
    changed = dataclasses.replace(
        base.parallel, replicas=replicas, context=context, activation_checkpointing=checkpointing
    )
    return rehearse(dataclasses.replace(base, parallel=changed), gpus)
