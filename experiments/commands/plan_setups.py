"""What `nava plan` plans: the recipe's own settings for a work, and the command's options over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from finetune.objectives.base import Phase
from finetune.plan_round import cached_passes
from finetune.recipe import AlignConfig
from finetune.sft.config import FinetuneConfig
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.generation.config import GenerateConfig
from pretrain.generation.held import base_of
from pretrain.model.moments_format import MomentsFormat
from pretrain.model.plan_setup import Checkpointing, Setup
from pretrain.model.plan_sizes import Base
from pretrain.recipe import ParallelConfig, PretrainConfig

if TYPE_CHECKING:
    from experiments.recipes.base import Recipe

RecipeWork = Literal["train", "lora", "align", "generate"]
# option -> the setting that it stands for, by the works of which it says something
SETTINGS: dict[str, dict[RecipeWork, str]] = {
    "context": {
        "train": "pretrain.parallel.context",
        "lora": "finetune.parallel.context",
        "align": "align.parallel.context",
        "generate": "nava generate --context",
    },
    "replicas": {
        "train": "pretrain.parallel.replicas",
        "lora": "finetune.parallel.replicas",
        "align": "align.parallel.replicas",
    },
    "checkpointing": {
        "train": "pretrain.parallel.activation_checkpointing",
        "lora": "finetune.parallel.activation_checkpointing",
        "align": "align.parallel.activation_checkpointing",
    },
    "local_batch": {
        "train": "pretrain.local_batch_size",
        "lora": "finetune.local_batch_size",
        "align": "align.OBJECTIVE.micro_batch and .rollout_batch",
        "generate": "generate.batch_size",
    },
    "base": {
        "lora": "finetune.lora.base",
        "align": "align.lora.base",
        "generate": "generate.bf16 and .quantisation",
    },
    "rank": {"lora": "finetune.lora.rank", "align": "align.lora.rank"},
    "moments": {
        "train": "pretrain.optimizer.moments",
        "lora": "finetune.optimizer.moments",
        "align": "align.moments",
    },
    "parked": {
        "align": "nava codec import --parked",
        "generate": "nava codec import --parked",
    },
}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the command line gives; None = as the recipe has it."""

    gpus: int = 8
    context: int | None = None
    replicas: int | None = None
    checkpointing: Checkpointing | None = None
    local_batch: int | None = None
    base: Base | None = None
    rank: int | None = None
    moments: MomentsFormat | None = None
    parked: bool = False  # the codec; a recipe does not say it

    def given(self) -> dict[str, Any]:
        """Options that say something other than the recipe, by name."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) not in (None, False)}

    def of(self, work: RecipeWork) -> PlanOptions:
        """Those that belong to a work."""
        others = (name for name in self.given() if work not in SETTINGS[name])
        left = {name: False if name == "parked" else None for name in others}
        return replace(self, **left)

    def parallel(self, config: ParallelConfig) -> ParallelConfig:
        """The recipe's, with what was given."""
        changes: dict[str, Any] = {"context": self.context, "replicas": self.replicas}
        changes |= {"activation_checkpointing": self.checkpointing}
        return replace(config, **{name: value for name, value in changes.items() if value is not None})


def check_options(options: PlanOptions, work: RecipeWork) -> None:
    """Raises ValueError for an option that says nothing about this work."""
    for name in options.given():
        if work not in SETTINGS[name]:
            flag, works = f"--{name.replace('_', '-')}", ", ".join(SETTINGS[name])
            raise ValueError(f"{flag}: nothing of --work {work} depends on it, only of {works}; leave it out")


def setup_of(recipe: Recipe | None, work: RecipeWork, options: PlanOptions) -> Setup:
    """What a work is planned with: the recipe's section for it, and those of `options` that belong to it.

    recipe: None = of a flavor: one clip, full recomputation. Raises ValueError where the recipe's batch does
    not spread over the GPUs, and as `Setup`.
    """
    options = options.of(work)
    if work == "generate":
        return _generating(recipe.generate if recipe else GenerateConfig(batch_size=1), options)
    if work == "align":
        return _aligning(align_config(recipe, options), recipe, options)
    if work == "train":
        config = recipe.pretrain if recipe else _of_a_flavor(PretrainConfig())
        return _training(config, options, recipe, work="train")
    tuned = recipe.finetune if recipe else _of_a_flavor(FinetuneConfig(parallel=ParallelConfig()))
    lora = tuned.lora
    base, rank = options.base or lora.base, options.rank or lora.rank
    if tuned.full:  # no adapter: as a training of all weights
        return _training(tuned, options, recipe, work="train", base=options.base or "fp32")
    return _training(tuned, options, recipe, work="lora", base=base, rank=rank)


def align_config(recipe: Recipe | None, options: PlanOptions, **clip: Any) -> AlignConfig:
    """The recipe's alignment with what was given, of clips of that size; of a flavor the default one.

    A micro-batch that is given is that of rollouts too.
    """
    config = recipe.alignment if recipe else _of_a_flavor(AlignConfig(parallel=ParallelConfig()))
    changes = {"base": options.base, "rank": options.rank}
    lora = replace(config.lora, **{name: value for name, value in changes.items() if value is not None})
    moments = options.moments or config.moments
    config = replace(config, lora=lora, moments=moments, parallel=options.parallel(config.parallel), **clip)
    batch = options.local_batch if recipe or options.local_batch is not None else 1
    return config if batch is None else with_micro_batch(config, batch)


def with_micro_batch(config: AlignConfig, clips: int) -> AlignConfig:
    """Rollouts and updates of `clips` at once. Raises ValueError for less than one."""
    for objective in config.objectives():
        config = config.with_phase(objective.name, micro_batch=clips, rollout_batch=clips)
    return config


def micro_batch_of(config: AlignConfig) -> int:
    """Clips of a micro-batch of the first objective."""
    phase: Phase = config.objectives()[0].phase
    return phase.micro_batch


def _of_a_flavor(config: Any) -> Any:
    return replace(config, parallel=replace(config.parallel, activation_checkpointing="full"))


def _generating(config: GenerateConfig, options: PlanOptions) -> Setup:
    sampler = config.sampler
    return Setup(
        gpus=options.gpus,
        work="generate",
        context=1 if options.context is None else options.context,
        local_batch=config.batch_size if options.local_batch is None else options.local_batch,
        base=options.base or base_of(config),
        guided=sampler.solver != "euler" or sampler.guidance != NO_GUIDANCE,
        cached_passes=cached_passes(sampler),
        parked=options.parked,
    )


def _aligning(config: AlignConfig, recipe: Recipe | None, options: PlanOptions) -> Setup:
    if recipe is not None:
        config.check_ranks(options.gpus)
    return Setup(
        gpus=options.gpus,
        work="align",
        local_batch=micro_batch_of(config),
        base=config.lora.base,
        rank=config.lora.rank,
        moments=config.moments,
        parked=options.parked,
        parked_rewards=recipe is not None and recipe.reward_files.parked,
        **_spread(config.parallel),
    )


def _training(
    config: PretrainConfig | FinetuneConfig, options: PlanOptions, recipe: Recipe | None, **held: Any
) -> Setup:
    """Of one clip where there is no recipe, whose batch has to spread over the GPUs."""
    setup = Setup(
        gpus=options.gpus,
        ema=config.ema_decay > 0,
        moments=options.moments or config.optimizer.moments,
        **_spread(options.parallel(config.parallel)),
        **held,
    )
    if recipe is None:
        return replace(setup, local_batch=1 if options.local_batch is None else options.local_batch)
    groups, whole = options.gpus // setup.context, config.global_batch_size
    asked = config.local_batch_size if options.local_batch is None else options.local_batch
    local = asked or whole // groups
    if local < 1 or whole % (local * groups):
        raise ValueError(
            f"global_batch_size {whole} does not split over {groups} data-parallel ranks x local_batch_size "
            f"{local}; give another --gpus, --context or --local-batch, or set the batch"
        )
    return replace(setup, local_batch=local, micro_batches=min(2, whole // (local * groups)))


def _spread(parallel: ParallelConfig) -> dict[str, Any]:
    return {
        "replicas": parallel.replicas,
        "context": parallel.context,
        "checkpointing": parallel.activation_checkpointing,
        "one_unit": not parallel.shard_blocks,
        "reshard": parallel.reshard_after_forward,
        "compiled": parallel.compile_blocks,
    }
