"""What a plan says fits: codecs and rewards share the GPU with the model, and its flags are real ones."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_networks import GIB, PUBLISHED, published_sizes

from experiments.alignment.beside import networks_of
from experiments.alignment.networks import ClipMedia
from experiments.alignment.round_plan import plan_alignment
from experiments.commands.codec import import_published
from experiments.commands.plan import plan
from experiments.commands.plan_fits import WORKS, SharedMemory, refusals, what_fits
from experiments.commands.plan_setups import SETTINGS, PlanOptions, RecipeWork, align_config, setup_of
from experiments.recipes.base import Recipe
from experiments.recipes.load import load_recipe
from pretrain.model.flavors import flavor
from pretrain.model.plan import LIMITS_GB, clip_shape
from pretrain.model.plan_beside import Beside, moments_beside, most
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_sizes import base_sizes

ARGS = flavor("nava_6b_published")
MEDIA = ClipMedia(145, 704, 1280, 24.0)
CLIP = clip_shape(ARGS, 145, 704, 1280)
RECIPE = load_recipe("nava_6b")


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    published_sizes(monkeypatch, PUBLISHED)


def memory_of(options: PlanOptions, recipe: Recipe | None = RECIPE) -> SharedMemory:
    return SharedMemory(recipe, MEDIA, options, ARGS)


def needed(work: RecipeWork, recipe: Recipe | None = RECIPE, **options: Any) -> float:
    """Bytes per GPU."""
    asked = PlanOptions(**options)
    memory = memory_of(asked, recipe)
    return sum(memory(ARGS, CLIP, setup_of(recipe, work, asked)).values())


NETWORK = st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans())


@given(
    step=st.integers(1, 100),
    waiting=st.integers(1, 100),
    networks=st.dictionaries(st.sampled_from("abcd"), NETWORK, min_size=1),
)
def test_moments_in_closed_form(step: int, waiting: int, networks: dict[str, tuple[int, int, bool]]) -> None:
    beside = {name: Beside(f"part {name}", *each) for name, each in networks.items()}
    found = moments_beside({"step": {"parameters": step}}, {"parameters": waiting}, beside)
    there = sum(weights for weights, _, parked in networks.values() if not parked)
    assert sum(found["step"].values()) == step + there
    for name, (weights, peak, parked) in networks.items():
        own = weights if parked else 0
        allowance = 3 * GIB + 0.05 * peak
        assert sum(found[name].values()) == pytest.approx(waiting + there + own + peak + allowance)
    assert sum(most(found).values()) == max(sum(parts.values()) for parts in found.values())
    all_parked = {name: replace(each, parked=True) for name, each in beside.items()}
    less = moments_beside({"step": {"parameters": step}}, {"parameters": waiting}, all_parked)
    assert all(sum(less[name].values()) <= sum(found[name].values()) for name in found)


@pytest.mark.parametrize("base", ["bf16", "int8"])
def test_generation_is_the_largest_of_text_step_and_decoding(base: Any) -> None:
    """The issue's case: the model, and at the largest moment the VAE at work beside the text encoder."""
    weights = base_sizes(ARGS, base).total / GIB
    resident = sum(size for name, (size, _) in PUBLISHED.items() if name in ("text", "video", "audio"))
    decoding = weights + resident + 3 + 1.05 * PUBLISHED["video"][1]
    assert needed("generate", base=base) / GIB == pytest.approx(decoding, rel=1e-4)
    text = weights + PUBLISHED["text"][0] + 3 + 1.05 * PUBLISHED["text"][1]
    parked_decoding = weights + PUBLISHED["video"][0] + 3 + 1.05 * PUBLISHED["video"][1]
    setup = setup_of(RECIPE, "generate", PlanOptions(base=base))
    step = sum(memory_parts(ARGS, CLIP, setup).values()) / GIB
    parked = needed("generate", base=base, parked=True) / GIB
    assert parked == pytest.approx(max(text, parked_decoding, step), rel=1e-4)
    assert text > step if base == "bf16" else text < parked_decoding


def test_what_does_not_fit_with_its_text_encoder_is_not_said_to_fit() -> None:
    assert sum(memory_parts(ARGS, CLIP, setup_of(RECIPE, "generate", PlanOptions())).values()) < 24e9
    assert needed("generate", base="bf16", parked=True) > 24e9
    found = what_fits(RECIPE, ARGS, MEDIA, PlanOptions(gpus=1), memory_of(PlanOptions(gpus=1)))
    assert found["generate"] == {
        "24_gb": "--base int8 --parked",
        "48_gb": "--base bf16",
        "80_gb": "--base bf16",
        "141_gb": "--base bf16",
    }
    assert found["train"]["24_gb"] == found["train"]["80_gb"] == ""


def test_the_embedded_codec_takes_no_gpu() -> None:
    small = load_recipe("mini")
    media = ClipMedia(25, 64, 64, 24.0)
    assert networks_of(flavor("mini"), media) == {}
    setup = setup_of(small, "generate", PlanOptions())
    args, clip = flavor("mini"), clip_shape(flavor("mini"), 25, 64, 64)
    memory = SharedMemory(small, media, PlanOptions(), args)
    assert sum(memory(args, clip, setup).values()) == pytest.approx(
        sum(memory_parts(args, clip, setup).values()), rel=1e-3
    )


def typed(flags: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options and settings of a line of `fits`."""
    options: dict[str, Any] = {}
    changes: list[str] = []
    words = iter(shlex.split(flags))
    for word in words:
        if word == "--set":
            changes.append(next(words))
        elif word == "--parked":
            options["parked"] = True
        else:
            value = next(words)
            options[word.removeprefix("--").replace("-", "_")] = int(value) if value.isdigit() else value
    return options, tuple(changes)


FITS = [
    (settings_of, gpus)
    for settings_of in ((), ("align.nft.micro_batch=4", "align.nft.rollout_batch=4"))
    for gpus in (8, 64)
]


@pytest.mark.parametrize(("settings_of", "gpus"), FITS)
def test_what_is_said_to_fit_fits_with_these_flags(settings_of: tuple[str, ...], gpus: int) -> None:
    recipe, options = load_recipe("nava_6b", None, settings_of), PlanOptions(gpus=gpus)
    found = what_fits(recipe, ARGS, MEDIA, options, memory_of(options, recipe))
    assert set(found) == set(WORKS)
    known = inspect.signature(plan).parameters
    for work in WORKS:
        sizes = found[work]
        assert [bool(flags) for flags in sizes.values()] == sorted(bool(flags) for flags in sizes.values())
        for size, flags in sizes.items():
            if not flags:
                continue
            asked, changes = typed(flags)
            assert asked.keys() <= known.keys() & SETTINGS.keys()
            assert all(work in SETTINGS[name] for name in asked)
            changed = load_recipe("nava_6b", None, (*settings_of, *changes))
            limit = int(size.removesuffix("_gb")) * 1e9
            assert needed(work, changed, gpus=gpus, **asked) <= limit
            if work == "align":
                assert aligned(changed, size, PlanOptions(gpus=gpus, **asked))


def test_a_work_that_the_recipe_refuses_on_these_gpus_does_not_fit_by_other_memory() -> None:
    """64 ranks do not share a batch of 32, nor 128 the 64 prompts of a round; groups of 2 and more do, and
    512 ranks have too many of them."""
    options = PlanOptions(gpus=64)
    assert "global_batch_size 32 does not split over 64" in refusals(RECIPE, options)["lora"]
    found = what_fits(RECIPE, ARGS, MEDIA, options, memory_of(options))
    assert all("--context " in flags for flags in found["lora"].values())
    more = PlanOptions(gpus=128)
    assert "64 does not divide into 128" in refusals(RECIPE, more)["align"]
    wide = what_fits(RECIPE, ARGS, MEDIA, more, memory_of(more))
    assert all("--context 2" in flags for flags in wide["align"].values())
    most = PlanOptions(gpus=512)
    assert set(what_fits(RECIPE, ARGS, MEDIA, most, memory_of(most))["lora"].values()) == {""}


def aligned(recipe: Recipe, size: str, options: PlanOptions) -> bool:
    """Whether `nava plan --align` says that it fits."""
    clip = {"num_frames": MEDIA.frames, "height": MEDIA.height, "width": MEDIA.width}
    found = plan_alignment(
        align_config(recipe, options, **clip),
        ARGS,
        options.gpus,
        parked=options.parked,
        parked_rewards=recipe.reward_files.parked,
    )
    return all(phase["fits"][size] for phase in found["phases"].values())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(["fp32", "bf16", "int8", "nf4"]),
    checkpointing=st.sampled_from(["none", "selective", "full"]),
    parked=st.booleans(),
    rewards=st.booleans(),
    context=st.sampled_from([1, 2, 4]),
    sequence=st.sampled_from(["nft", "grpo", "nft, gsb_dpo"]),
)
def test_an_alignment_fits_where_the_plan_of_its_round_says_so(
    base: Any, checkpointing: Any, parked: bool, rewards: bool, context: int, sequence: str
) -> None:
    changes = (f"align.sequence=[{sequence}]", f"reward_files.parked={str(rewards).lower()}")
    recipe = load_recipe("nava_6b", None, changes)
    options = PlanOptions(gpus=8, base=base, checkpointing=checkpointing, parked=parked, context=context)
    total = sum(memory_of(options, recipe)(ARGS, CLIP, setup_of(recipe, "align", options)).values())
    for size in LIMITS_GB:
        assert (total <= size * 1e9) == aligned(recipe, f"{size}_gb", options)


def test_parking_rewards_leaves_syncnet() -> None:
    def of(*changes: str, parked: bool = True) -> float:
        options = PlanOptions(gpus=64, parked=parked)
        found = plan_alignment(
            align_config(recipe := load_recipe("nava_6b", None, changes), options),
            ARGS,
            64,
            parked=parked,
            parked_rewards=recipe.reward_files.parked,
        )
        return found["phases"]["nft"]["memory_per_gpu_gib"]["update"]

    codec = sum(size for name, (size, _) in PUBLISHED.items() if name in ("text", "video", "audio"))
    rewards = sum(PUBLISHED[name][0] for name in RECIPE.alignment.rubric.weights() if name != "syncnet")
    assert of(parked=False) - of() == pytest.approx(codec, abs=0.01)
    assert of() - of("reward_files.parked=true") == pytest.approx(rewards, abs=0.01)


def test_settings_named_for_flags_are_there() -> None:
    for option, works in SETTINGS.items():
        for name in works.values():
            if option == "parked" or "generate --context" in name:
                continue
            path = name.replace("OBJECTIVE", "nft").split(" and .")
            first = path[0].split(".")
            for last in (first[-1], *path[1:]):
                at: Any = RECIPE
                for part in (*first[:-1], last):
                    at = at.phases if part == "nft" else at
                    at = at[part] if isinstance(at, dict) else getattr(at, part)
    assert "parked" in inspect.signature(import_published).parameters


@pytest.mark.slow
def test_the_sizes_here_are_those_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = networks_of(ARGS, MEDIA, list(RECIPE.alignment.rubric.weights()))
    assert set(found) == set(PUBLISHED)
    for name, cost in found.items():
        assert (cost.weights / GIB, cost.peak / GIB) == pytest.approx(PUBLISHED[name], rel=1e-3), name
