"""What fits on which GPU: memory with what shares the GPU with the model, and the settings that make room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from experiments.alignment.beside import NetworkCosts, generation_moments, networks_of, round_moments
from experiments.alignment.networks import ClipMedia
from experiments.commands.plan_setups import (
    PlanOptions,
    RecipeWork,
    align_config,
    micro_batch_of,
    setup_of,
    with_micro_batch,
)
from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan import LIMITS_GB, check_context, clip_shape
from pretrain.model.plan_beside import most
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_setup import Setup

if TYPE_CHECKING:
    from experiments.recipes.base import Recipe

Way = Mapping[str, Any]  # options by name, and `parked_rewards`
MODES = ("none", "selective", "full")
BASES = ("bf16", "int8", "nf4")
CONTEXTS = (2, 4, 8)
WORKS: tuple[RecipeWork, ...] = ("train", "lora", "align", "generate")
PARKED_REWARDS = "--set reward_files.parked=true"


@dataclass(frozen=True)
class SharedMemory:
    """Bytes per GPU by part, at the moment at which most is held: of a setup's model and, in generation and
    alignment, of what is beside it there."""

    recipe: Recipe | None
    media: ClipMedia
    options: PlanOptions
    args: ModelArgs

    def __call__(self, args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
        if setup.work == "generate":
            return most(generation_moments(args, clip, setup, self.networks))
        if setup.work == "align":
            return most(self._round(setup))
        return memory_parts(args, clip, setup)

    @cached_property
    def networks(self) -> NetworkCosts:
        rewards = list(self.recipe.alignment.rubric.weights()) if self.recipe else []
        return networks_of(self.args, self.media, rewards)

    def _round(self, setup: Setup) -> dict[str, dict[str, float]]:
        """Of the objective that needs most, spread as `setup` is."""
        media = self.media
        clip = {"num_frames": media.frames, "height": media.height, "width": media.width, "fps": media.fps}
        config = align_config(self.recipe, self.options.of("align"), **clip)
        lora = replace(config.lora, base=setup.base, rank=setup.rank)
        parallel = replace(
            config.parallel,
            context=setup.context,
            replicas=setup.replicas,
            activation_checkpointing=setup.checkpointing,
        )
        config = replace(config, lora=lora, parallel=parallel, moments=setup.moments)
        if setup.local_batch != micro_batch_of(config):
            config = with_micro_batch(config, setup.local_batch)
        parked = setup.parked, setup.parked_rewards
        return {
            f"{objective.name} {name}": parts
            for objective in config.objectives()
            for name, parts in round_moments(
                config, self.args, objective, setup.gpus, self.networks, *parked
            ).items()
        }


def what_fits(
    recipe: Recipe | None, args: ModelArgs, media: ClipMedia, options: PlanOptions, memory: SharedMemory
) -> dict[str, dict[str, str]]:
    """For each work and size of GPU, the lightest settings with which its micro-batch fits, as options of
    `nava plan`; "" = none does.

    Lightest first: what costs nothing but rounding, then what costs time, then fewer clips at once, then
    GPUs that share a clip. Settings that the recipe's section for the work refuses are not tried.
    """
    found: dict[str, dict[str, str]] = {}
    clip = clip_shape(args, media.frames, media.height, media.width, media.fps)
    for work in WORKS:
        sizes = {f"{size}_gb": size * 1e9 for size in LIMITS_GB}
        found[work] = dict.fromkeys(sizes, "")
        for way, setup in _setups(recipe, work, options, args, media, clip):
            left = [name for name, flags in found[work].items() if not flags]
            if not left:
                break
            needed = sum(memory(args, clip, setup).values())
            found[work] |= {name: flags_of(way) for name in left if needed <= sizes[name]}
    return found


def refusals(recipe: Recipe | None, options: PlanOptions) -> dict[str, str]:
    """Why a work cannot be planned as the recipe has it, for those that cannot."""
    found: dict[str, str] = {}
    for work in WORKS:
        try:
            setup_of(recipe, work, options)
        except ValueError as error:
            found[work] = str(error)
    return found


def flags_of(way: Way) -> str:
    """The options of a way, as they are typed."""
    words = []
    for name, value in way.items():
        if name == "parked_rewards":
            words += [PARKED_REWARDS] if value else []
        elif name == "parked":
            words += ["--parked"] if value else []
        else:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def _setups(
    recipe: Recipe | None,
    work: RecipeWork,
    options: PlanOptions,
    args: ModelArgs,
    media: ClipMedia,
    clip: ClipShape,
) -> Iterator[tuple[Way, Setup]]:
    """Each way and its setup, lightest first."""
    rewards = recipe is not None and work == "align"
    for way in _ways(recipe, work, options):
        given = {name: value for name, value in way.items() if name != "parked_rewards"}
        try:
            setup = setup_of(recipe, work, replace(options.of(work), **given))
            size = media.frames, media.height, media.width
            check_context(args, clip, *size, setup.context)
        except ValueError:
            continue
        if rewards and way.get("parked_rewards"):
            setup = replace(setup, parked_rewards=True)
        yield way, setup


def _ways(recipe: Recipe | None, work: RecipeWork, options: PlanOptions) -> Iterator[Way]:
    full = work == "train" or (work == "lora" and recipe is not None and recipe.finetune.full)
    for spread in _spreads(recipe, work, options):
        if full:
            moments: tuple[Way, ...] = ({}, {"moments": "8bit"})
            yield from ({"checkpointing": mode, **each, **spread} for mode in MODES for each in moments)
        elif work == "lora":
            yield from ({"base": base, "checkpointing": mode, **spread} for mode in MODES for base in BASES)
        elif work == "generate":
            yield from ({"base": base, **spread, **parked} for base in BASES for parked in _parked(False))
        else:
            yield from (
                {"base": base, "checkpointing": mode, **spread, **parked}
                for mode in MODES
                for base in BASES
                for parked in _parked(recipe is not None)
            )


def _parked(rewards: bool) -> tuple[Way, ...]:
    """Nothing, the codec's networks, and with rewards theirs too."""
    return ({}, {"parked": True}, *([{"parked": True, "parked_rewards": True}] if rewards else []))


def _spreads(recipe: Recipe | None, work: RecipeWork, options: PlanOptions) -> Iterator[Way]:
    """As it is spread, then one clip at once, without replicas, and shared by more GPUs."""
    yield {}
    try:
        own = setup_of(recipe, work, options)
    except ValueError:  # what is asked for does not divide over these GPUs: fewer groups may do
        yield from ({"context": context} for context in CONTEXTS)
        return
    changes: dict[str, Any] = {}
    if own.local_batch > 1:
        changes["local_batch"] = 1
        yield dict(changes)
    if own.replicas > 1:
        changes["replicas"] = 1
        yield dict(changes)
    yield from ({**changes, "context": context} for context in CONTEXTS if context > own.context)
