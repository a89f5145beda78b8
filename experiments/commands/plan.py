"""`nava plan`: what a model costs before it is trained, and a dry run of one training step on one CPU."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.commands.options import JsonFlag, SetOptions, recipe_for

if TYPE_CHECKING:
    from experiments.recipes.base import Recipe

Size = Annotated[int | None, tyro.conf.arg(help="of a clip; default: as the recipe generates")]
FLAVOR_CLIP = {"frames": 145, "height": 704, "width": 1280, "fps": 24.0}  # where NAME is no recipe


RecipeOrFlavor = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="a recipe, or a flavor of the model")
]
PeakTflops = Annotated[float, tyro.conf.arg(help="of one GPU; 989 is an H100 or H200 in dense bf16")]
WorkOption = Annotated[
    Literal["train", "lora", "align", "generate"],
    tyro.conf.arg(help="whose memory: train all weights, lora = fine-tune an adapter, align, generate"),
]
BaseOption = Annotated[
    Literal["fp32", "bf16", "int8", "fp8", "nf4"],
    tyro.conf.arg(help="what a frozen base is held in (lora.base)"),
]
MomentsOption = Annotated[
    Literal["fp32", "8bit", "host"], tyro.conf.arg(help="AdamW's moments: fp32, 8 bits, or in host memory")
]
EncodePixels = Annotated[
    float,
    tyro.conf.arg(
        help="of one GPU's video encoder, pixels x frames, as `python -m experiments.benchmarks.codec_speed "
        "--device cuda` measures it (per_s of video_encode); 0 = not known"
    ),
]
AlignFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="of a round of the recipe's alignment: seconds, memory and cost by part; sizes, LoRA, base, "
        "checkpointing and micro-batches are those of its `align` section"
    ),
]
SecondsPerClip = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="NAME=SECONDS",
        help="with --align: measured seconds of `decode` or of a reward for one clip on one GPU, in place of "
        "those that follow from FLOPs; may be repeated",
    ),
]
DryRunStep = Annotated[
    bool, tyro.conf.arg(help="build, shard and run one step on one CPU, with simulated ranks")
]


def plan(
    name: RecipeOrFlavor,
    /,
    gpus: int = 8,
    frames: Size = None,
    height: Size = None,
    width: Size = None,
    fps: Annotated[float | None, tyro.conf.arg(help="of a clip; default: as the recipe generates")] = None,
    context: Annotated[int, tyro.conf.arg(help="context-parallel degree: GPUs that share a clip")] = 1,
    replicas: Annotated[int, tyro.conf.arg(help="data-parallel replicas: groups that hold all shards")] = 1,
    checkpointing: Literal["none", "selective", "full"] = "full",
    local_batch: int = 1,
    work: WorkOption = "train",
    base: BaseOption = "fp32",
    rank: Annotated[int, tyro.conf.arg(help="of the adapters of lora and align")] = 32,
    moments: MomentsOption = "fp32",
    mfu: Annotated[float, tyro.conf.arg(help="assumed model FLOPs utilisation")] = 0.4,
    peak_tflops: PeakTflops = 989.0,
    clips: Annotated[int, tyro.conf.arg(help="of the data set: adds encoding, storage, GPU hours, cost")] = 0,
    price: Annotated[float, tyro.conf.arg(help="of one GPU for an hour, in any currency")] = 0.0,
    encode_pixels_per_s: EncodePixels = 0.0,
    align: AlignFlag = False,
    seconds_per_clip: SecondsPerClip = (),
    dry_run: DryRunStep = False,
    settings: SetOptions = (),
    as_json: JsonFlag = False,
) -> None:
    """Parameters, tokens, FLOPs, memory per GPU by part, the largest batch, what fits where, days to train.

    NAME is a recipe, whose stages (with ./params.yaml if that is for this recipe) give the days and whose
    `generate` section gives the clip, or a flavor of the model at 145 x 704 x 1280. Nothing is allocated.
    --clips N --price P adds what N clips and the training cost:
      nava plan nava_6b --gpus 128 --clips 1000000 --price 2.5 --encode-pixels-per-s 4e7
    --align plans a round of the recipe's alignment: nava plan nava_6b --align --gpus 64 --price 2.5
    With --dry-run the model is also built, cut into the shards of one rank among --gpus, and taken through
    one step of a tiny clip with simulated collectives.
    """
    from experiments.commands.plan_round import check_seconds, plan_round
    from experiments.commands.plan_table import show
    from pretrain.model.plan import assumptions, plan_model

    recipe, sizes = _recipe(name, settings), {"frames": frames, "height": height, "width": width, "fps": fps}
    speed = {"mfu": mfu, "peak_tflops": peak_tflops}
    check_seconds(seconds_per_clip, align)
    if align:
        return plan_round(recipe, gpus, context, replicas, sizes, seconds_per_clip, speed, price, as_json)
    config = recipe.pretrain if recipe else None
    flavor_name = config.flavor if config else name
    clip = _clip_of(recipe, **sizes)
    spread = {"context": context, "replicas": replicas, "local_batch": local_batch, **_cached(recipe)}
    held = {"checkpointing": checkpointing, "work": work, "base": base, "rank": rank, "moments": moments}
    found = plan_model(flavor_name, gpus, **clip, **spread, **held, ema=not config or config.ema_decay > 0)
    found |= _times(recipe, clip, gpus, **speed)
    rates = {"clips": clips, "price": price, "encode_pixels_per_s": encode_pixels_per_s}
    found |= _costs(recipe, clip, gpus, found, rates)
    found["assumptions"] = assumptions(checkpointing, mfu, peak_tflops, work, base, moments)
    if dry_run:
        found["dry_run"] = _rehearsed(flavor_name, config, gpus, context, replicas, checkpointing)
    print(json.dumps(found, indent=1)) if as_json else show(found)


def _cached(recipe: Recipe | None) -> dict[str, int]:
    """Of the recipe's sampler: see `Setup`."""
    from finetune.plan_round import cached_passes

    return {"cached_passes": cached_passes(recipe.generate.sampler)} if recipe else {}


def _times(
    recipe: Recipe | None, clip: dict[str, Any], gpus: int, mfu: float, peak_tflops: float
) -> dict[str, Any]:
    from pretrain.model.flavors import flavor
    from pretrain.model.plan import clip_shape, step_seconds
    from pretrain.plan_schedule import plan_schedule

    step_seconds(1.0, gpus, mfu, peak_tflops)
    if recipe is None:
        return {}
    shape = clip_shape(flavor(recipe.pretrain.flavor), **clip)
    return {"time": plan_schedule(recipe.pretrain, shape, gpus, mfu, peak_tflops)}


def _costs(
    recipe: Recipe | None, clip: dict[str, Any], gpus: int, found: dict[str, Any], rates: dict[str, Any]
) -> dict[str, Any]:
    from pretrain.data.stream.sample import DTYPES
    from pretrain.model.flavors import flavor
    from pretrain.model.plan import clip_shape
    from pretrain.plan_costs import plan_costs

    if not any(rates.values()):
        return {}
    if recipe is None:
        raise ValueError("--clips, --price: a flavor has no stages to train; give a recipe")
    args, pixels = flavor(recipe.pretrain.flavor), clip["frames"] * clip["height"] * clip["width"]
    days = found["time"]["total"]["days"]
    size = DTYPES[recipe.encode.latent_dtype].itemsize
    shape = clip_shape(args, **clip)
    return {"costs": plan_costs(args, shape, pixels, recipe.pretrain, gpus, days, **rates, latent_bytes=size)}


def _clip_of(recipe: Recipe | None, **given: float | None) -> dict[str, Any]:
    """Frames, pixels and frame rate of a clip: as given, else as the recipe generates it."""
    found = dict(FLAVOR_CLIP)
    if recipe is not None:
        clip = recipe.generate
        found = {"frames": clip.num_frames, "height": clip.height, "width": clip.width, "fps": clip.fps}
    return found | {key: value for key, value in given.items() if value is not None}


def _recipe(name: str, settings: tuple[str, ...]) -> Recipe | None:
    """The recipe called `name`, None where only a flavor is called so."""
    from experiments.recipes.load import shipped_recipes
    from pretrain.config import nearest
    from pretrain.model.flavors import FLAVORS

    if "." in name or name in shipped_recipes():
        return recipe_for(name, settings)
    if settings:
        raise ValueError(
            f"--set: {name} is a flavor and has nothing to set; give a recipe: {', '.join(shipped_recipes())}"
        )
    if name not in FLAVORS:
        raise ValueError(
            f"unknown recipe or flavor {name!r}; {nearest(name, [*FLAVORS, *shipped_recipes()])}"
        )
    return None


def _rehearsed(
    flavor: str, config: Any, gpus: int, context: int, replicas: int, checkpointing: str
) -> dict[str, Any]:
    from pretrain.dry_run import rehearse
    from pretrain.recipe import PretrainConfig

    base = config or dataclasses.replace(PretrainConfig(), flavor=flavor)
    changed = dataclasses.replace(
        base.parallel, replicas=replicas, context=context, activation_checkpointing=checkpointing
    )
    return rehearse(dataclasses.replace(base, parallel=changed), gpus)
