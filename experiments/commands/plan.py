"""`nava plan`: what a model costs before it is trained, and a dry run of one training step on one CPU."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.commands.options import JsonFlag, SetOptions, recipe_for

if TYPE_CHECKING:
    from experiments.commands.plan_setups import PlanOptions, RecipeWork
    from experiments.recipes.base import Recipe

Size = Annotated[int | None, tyro.conf.arg(help="of a clip; default: as the recipe generates")]
FLAVOR_CLIP = {"frames": 145, "height": 704, "width": 1280, "fps": 24.0}  # where NAME is no recipe


RecipeOrFlavor = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="a recipe, or a flavor of the model")
]
PeakTflops = Annotated[float, tyro.conf.arg(help="of one GPU; 989 is an H100 or H200 in dense bf16")]
WorkOption = Annotated[
    Literal["train", "lora", "align", "generate"] | None,
    tyro.conf.arg(
        help="whose memory: train all weights (pretrain), lora = fine-tune (finetune), align, generate; "
        "default: train"
    ),
]
ContextOption = Annotated[
    int | None, tyro.conf.arg(help="GPUs that share a clip (parallel.context; of generate its --context)")
]
ReplicasOption = Annotated[
    int | None, tyro.conf.arg(help="groups of GPUs that hold all shards (parallel.replicas)")
]
CheckpointingOption = Annotated[
    Literal["none", "selective", "full"] | None,
    tyro.conf.arg(help="what is recomputed (parallel.activation_checkpointing)"),
]
LocalBatchOption = Annotated[
    int | None,
    tyro.conf.arg(
        help="clips of a micro-batch (local_batch_size; of align micro_batch and rollout_batch; of generate "
        "batch_size)"
    ),
]
BaseOption = Annotated[
    Literal["fp32", "bf16", "int8", "fp8", "nf4"] | None,
    tyro.conf.arg(help="what a frozen model is held in (lora.base; of generate bf16 and quantisation)"),
]
RankOption = Annotated[int | None, tyro.conf.arg(help="of the adapters of lora and align (lora.rank)")]
MomentsOption = Annotated[
    Literal["fp32", "8bit"] | None,
    tyro.conf.arg(help="AdamW's moments in training, lora (optimizer.moments) and align (align.moments)"),
]
ParkedFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="align, generate: the codec was imported with `nava codec import --parked`, so text encoder and "
        "VAEs are on the GPU only while they work; those of rewards are by --set reward_files.parked=true"
    ),
]
EncodePixels = Annotated[
    float,
    tyro.conf.arg(
        help="of one GPU's video encoder, pixels x frames, as `python -m experiments.benchmarks.codec_speed "
        "--device cuda` measures it (per_s of video_encode); 0 = not known"
    ),
]
ClipsOption = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N",
        help="of the data set: adds their encoding and storage to what the training takes; without, --price "
        "is of the training alone",
    ),
]
AlignFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="of a round of the recipe's alignment: seconds, memory and cost by part; all that is not given "
        "is that of its `align` section, the clip's size too"
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
    context: ContextOption = None,
    replicas: ReplicasOption = None,
    checkpointing: CheckpointingOption = None,
    local_batch: LocalBatchOption = None,
    work: WorkOption = None,
    base: BaseOption = None,
    rank: RankOption = None,
    moments: MomentsOption = None,
    parked: ParkedFlag = False,
    mfu: Annotated[float, tyro.conf.arg(help="assumed model FLOPs utilisation")] = 0.4,
    peak_tflops: PeakTflops = 989.0,
    clips: ClipsOption = None,
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
    `generate` section gives the clip, or a flavor of the model at 145 x 704 x 1280. How the work is spread
    and held is as the recipe's section for it says (--set too), unless an option says otherwise; of a flavor
    blocks are recomputed. Nothing is allocated. --price adds what the training costs, --clips N clips too:
      nava plan nava_6b --gpus 128 --clips 1000000 --price 2.5 --encode-pixels-per-s 4e7
    --align plans a round of the recipe's alignment: nava plan nava_6b --align --gpus 64 --price 2.5
    --dry-run also builds the shards of one rank among --gpus, simulates the others, and steps a tiny clip.
    """
    from experiments.commands.plan_round import check_round, plan_round
    from experiments.commands.plan_setups import PlanOptions, check_options
    from experiments.commands.plan_table import show

    recipe, sizes = _recipe(name, settings), {"frames": frames, "height": height, "width": width, "fps": fps}
    speed = {"mfu": mfu, "peak_tflops": peak_tflops}
    asked: RecipeWork = "align" if align else work or "train"
    spread: dict[str, Any] = {"context": context, "replicas": replicas, "checkpointing": checkpointing}
    held: dict[str, Any] = {"base": base, "rank": rank, "moments": moments, "local_batch": local_batch}
    options = PlanOptions(gpus=gpus, parked=parked, **spread, **held)
    check_options(options, asked)
    rates = _rates(recipe, align, clips=clips, price=price, encode_pixels_per_s=encode_pixels_per_s)
    check_round(seconds_per_clip, align, work, dry_run, clips is not None or encode_pixels_per_s)
    if align:
        return plan_round(recipe, options, sizes, seconds_per_clip, speed, price, as_json)
    clip = _clip_of(recipe, **sizes)
    found = _memory(recipe, name, asked, options, clip, speed) | _times(recipe, clip, gpus, **speed)
    found |= _costs(recipe, clip, gpus, found, rates)
    if dry_run:
        found["dry_run"] = _rehearsed(name, recipe, options)
    print(json.dumps(found, indent=1)) if as_json else show(found)


def _memory(
    recipe: Recipe | None,
    name: str,
    work: RecipeWork,
    options: PlanOptions,
    clip: dict[str, Any],
    speed: dict[str, float],
) -> dict[str, Any]:
    """Sizes, FLOPs and memory of a work, and what fits, with what they rest on."""
    from experiments.alignment.networks import ClipMedia
    from experiments.commands.plan_assumptions import assumptions, recipe_lines
    from experiments.commands.plan_fits import SharedMemory, refusals, what_fits
    from experiments.commands.plan_setups import SETTINGS, setup_of
    from pretrain.model.flavors import flavor
    from pretrain.model.plan import plan_model

    flavor_name = recipe.pretrain.flavor if recipe else name
    args, setup = flavor(flavor_name), setup_of(recipe, work, options)
    media = ClipMedia(**clip)
    memory = SharedMemory(recipe, media, options, args)
    found = plan_model(flavor_name, **clip, memory=memory, **dataclasses.asdict(setup))
    found["fits"] = what_fits(recipe, args, media, options, memory)
    found["fits_refused"] = {
        each: why for each, why in refusals(recipe, options).items() if not any(found["fits"][each].values())
    }
    found["settings"] = SETTINGS
    lines = assumptions(setup, args, **speed)
    return {**found, "assumptions": [*lines, *recipe_lines(recipe, work)]}


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


def _asks_for_costs(rates: dict[str, Any]) -> bool:
    return rates["clips"] is not None or bool(rates["price"]) or bool(rates["encode_pixels_per_s"])


def _rates(recipe: Recipe | None, align: bool, **rates: Any) -> dict[str, Any]:
    """As given. Raises ValueError where costs of a training are asked for that cannot be worked out."""
    from pretrain.plan_costs import check_rates

    if not align and _asks_for_costs(rates):
        if recipe is None:
            raise ValueError("--clips, --price: a flavor has no stages to train; give a recipe")
        check_rates(**rates)
    return rates


def _costs(
    recipe: Recipe | None, clip: dict[str, Any], gpus: int, found: dict[str, Any], rates: dict[str, Any]
) -> dict[str, Any]:
    from pretrain.data.stream.sample import DTYPES
    from pretrain.model.flavors import flavor
    from pretrain.model.plan import clip_shape
    from pretrain.plan_costs import plan_costs

    if recipe is None or not _asks_for_costs(rates):
        return {}
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


def _rehearsed(name: str, recipe: Recipe | None, options: PlanOptions) -> dict[str, Any]:
    from pretrain.dry_run import rehearse
    from pretrain.recipe import ParallelConfig, PretrainConfig

    of_flavor = ParallelConfig(activation_checkpointing="full")
    config = recipe.pretrain if recipe else PretrainConfig(flavor=name, parallel=of_flavor)
    return rehearse(dataclasses.replace(config, parallel=options.parallel(config.parallel)), options.gpus)
