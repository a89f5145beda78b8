"""`nava plan` plans what the recipe says, and what an option says over it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from plan_networks import count_by_hand

from experiments.cli import main
from experiments.commands.plan_setups import SETTINGS, PlanOptions, RecipeWork, setup_of
from experiments.recipes.base import Recipe
from experiments.recipes.load import load_recipe
from pretrain import dry_run
from pretrain.model.flavors import flavor
from pretrain.model.plan import clip_shape
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_sizes import sizes_of
from pretrain.recipe import ParallelConfig

SECTIONS: dict[RecipeWork, str] = {"train": "pretrain", "lora": "finetune", "align": "align"}
# a field of ParallelConfig, and what says something else than every section of nava_6b
OTHERS: dict[str, Any] = {
    "replicas": 2,
    "context": 2,
    "activation_checkpointing": "selective",
    "shard_blocks": None,  # the other of true and false
    "reshard_after_forward": False,
    "compile_blocks": None,
}


@pytest.fixture(autouse=True)
def _quick_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    count_by_hand(monkeypatch)


def nava_6b(*settings: str) -> Recipe:
    return load_recipe("nava_6b", None, settings)


def planned(capsys: pytest.CaptureFixture[str], *asked: str) -> dict[str, Any]:
    assert main(["plan", *asked, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_field_of_parallel_config_is_tried_here() -> None:
    assert set(OTHERS) == {item.name for item in fields(ParallelConfig)}


@pytest.mark.parametrize("work", SECTIONS)
@pytest.mark.parametrize("field", OTHERS)
def test_a_set_field_of_parallel_changes_the_setup(work: RecipeWork, field: str) -> None:
    section, recipe = SECTIONS[work], nava_6b()
    here = getattr(getattr(recipe, section).parallel, field)
    other = (not here) if OTHERS[field] is None else OTHERS[field]
    changed = nava_6b(f"{section}.parallel.{field}={json.dumps(other)}")
    options = PlanOptions(gpus=8)
    was, now = (setup_of(each, work, options) for each in (recipe, changed))
    assert was != now
    named = {
        "activation_checkpointing": ("checkpointing", other),
        "shard_blocks": ("one_unit", not other),
        "reshard_after_forward": ("reshard", other),
        "compile_blocks": ("compiled", other),
    }.get(field, (field, other))
    assert getattr(now, named[0]) == named[1]


# option, its value, and the setting that says the same
SAME: list[tuple[RecipeWork, str, Any, tuple[str, ...]]] = [
    *(
        (work, option, value, (f"{SETTINGS[option][work]}={value}",))
        for work in SECTIONS
        for option, value in (("context", 2), ("replicas", 2), ("checkpointing", "selective"))
    ),
    ("train", "local_batch", 2, ("pretrain.local_batch_size=2",)),
    ("lora", "local_batch", 1, ("finetune.local_batch_size=1",)),
    ("align", "local_batch", 2, ("align.nft.micro_batch=2", "align.nft.rollout_batch=2")),
    ("generate", "local_batch", 2, ("generate.batch_size=2",)),
    ("lora", "base", "int8", ("finetune.lora.base=int8",)),
    ("align", "base", "nf4", ("align.lora.base=nf4",)),
    ("generate", "base", "int8", ("generate.quantisation=int8",)),
    ("generate", "base", "fp32", ("generate.bf16=false",)),
    ("lora", "rank", 8, ("finetune.lora.rank=8",)),
    ("align", "rank", 8, ("align.lora.rank=8",)),
]


@pytest.mark.parametrize(("work", "option", "value", "settings"), SAME)
def test_an_option_is_the_setting_that_it_stands_for(
    work: RecipeWork, option: str, value: Any, settings: tuple[str, ...]
) -> None:
    given = PlanOptions(gpus=8, **{option: value})
    by_option, by_setting = (
        setup_of(nava_6b(), work, given),
        setup_of(nava_6b(*settings), work, PlanOptions()),
    )
    assert by_option == by_setting
    assert by_option != setup_of(nava_6b(), work, PlanOptions()) or (work, option) == ("lora", "local_batch")


@pytest.mark.parametrize(
    ("work", "section"),
    [("train", "pretrain.optimizer"), ("lora", "finetune.optimizer"), ("align", "align")],
)
def test_moments_are_those_of_the_section(work: RecipeWork, section: str) -> None:
    changed = nava_6b(f"{section}.moments=8bit")
    assert setup_of(changed, work, PlanOptions()) == setup_of(nava_6b(), work, PlanOptions(moments="8bit"))
    assert setup_of(changed, work, PlanOptions(moments="fp32")) == setup_of(nava_6b(), work, PlanOptions())


def test_an_option_is_before_the_setting() -> None:
    recipe = nava_6b("pretrain.parallel.context=2", "pretrain.parallel.replicas=2")
    assert setup_of(recipe, "train", PlanOptions()).context == 2
    assert setup_of(recipe, "train", PlanOptions(context=1)).context == 1
    assert setup_of(recipe, "train", PlanOptions(context=1)).replicas == 2


def test_the_verb_reads_set_and_says_what_it_cannot_follow(capsys: pytest.CaptureFixture[str]) -> None:
    plain = planned(capsys, "nava_6b", "--gpus", "8")
    changed = planned(
        capsys,
        *("nava_6b", "--gpus", "8", "--set", "pretrain.parallel.context=2"),
        *("--set", "pretrain.parallel.activation_checkpointing=none"),
        *("--set", "pretrain.parallel.reshard_after_forward=false"),
        *("--set", "pretrain.parallel.compile_blocks=false"),
    )
    assert plain["setup"]["context"] == 1 and changed["setup"]["context"] == 2
    assert plain["setup"]["checkpointing"] == "full" and changed["setup"]["checkpointing"] == "none"
    part = "gathered_parameters"
    assert changed["memory_per_gpu_gib"][part] > 4 * plain["memory_per_gpu_gib"][part]
    compiled = "parallel.compile_blocks is on"
    assert [any(compiled in line for line in each["assumptions"]) for each in (plain, changed)] == [
        True,
        False,
    ]
    tuned = planned(
        capsys, "nava_6b", "--work", "lora", "--set", 'finetune.lora.targets=["ffn"]', "--gpus", "8"
    )
    assert any("finetune.lora.targets" in line for line in tuned["assumptions"])
    assert not tuned["setup"]["one_unit"] and tuned["setup"]["checkpointing"] == "full"
    small = planned(capsys, "mini", "--work", "lora", "--gpus", "8")
    assert small["setup"]["one_unit"] and small["setup"]["checkpointing"] == "none"


def test_without_resharding_all_blocks_are_there_in_bf16() -> None:
    args, clip = flavor("nava_6b"), clip_shape(flavor("nava_6b"), 145, 704, 1280)
    setup = setup_of(nava_6b(), "train", PlanOptions(gpus=64))
    sizes = sizes_of(args)
    stay = memory_parts(args, clip, replace(setup, reshard=False))["gathered_parameters"]
    assert stay == 2 * (sum(sizes.blocks) + sizes.root) + 4 * sizes.time
    come_and_go = memory_parts(args, clip, setup)["gathered_parameters"]
    assert stay - come_and_go == 2 * (sum(sizes.blocks) - 2 * sizes.largest)


def test_all_weights_of_a_full_fine_tuning_are_planned_as_trained() -> None:
    setup = setup_of(nava_6b("finetune.full=true"), "lora", PlanOptions(gpus=8))
    assert (setup.work, setup.base, setup.micro_batches) == ("train", "fp32", 2)
    with pytest.raises(ValueError, match="training trains all weights"):
        setup_of(nava_6b("finetune.full=true"), "lora", PlanOptions(gpus=8, base="int8"))


def test_a_step_of_one_micro_batch_holds_no_gradients_of_another() -> None:
    counts = {gpus: setup_of(nava_6b(), "train", PlanOptions(gpus=gpus)).micro_batches for gpus in (128, 512)}
    assert counts == {128: 2, 512: 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--rank", "8"], "--rank: nothing of --work train depends on it, only of lora, align"),
        (["--base", "int8"], "--base: nothing of --work train"),
        (["--parked"], "only of align, generate"),
        (["--work", "generate", "--replicas", "2"], "--replicas: nothing of --work generate"),
        (["--work", "generate", "--moments", "8bit"], "--moments: nothing of --work generate"),
        (["--align", "--work", "generate"], "not --work generate"),
        (["--align", "--dry-run"], "--dry-run: of a training"),
        (["--align", "--clips", "5"], "--clips"),
        (["--work", "lora", "--dry-run"], "not of --work lora; leave one out"),
        (["--work", "lora", "--gpus", "128"], "global_batch_size 32 does not split over 128"),
        (["--gpus", "24"], "global_batch_size 512 does not split over 24"),
        (["--set", "pretrain.parallel.replicas=3"], "3 replicas x 1 context"),
        (["--local-batch", "3"], "512 does not split over 8 data-parallel ranks x local_batch_size 3"),
        (["--local-batch", "-1"], "x local_batch_size -1"),
    ],
)
def test_what_nothing_depends_on_and_what_cannot_run_is_refused(
    capsys: pytest.CaptureFixture[str], asked: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "nava_6b", *asked])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told and told.count("\n") == 1


def test_a_flavor_is_one_clip_recomputed(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "debug", "--gpus", "6")["setup"]
    assert (found["local_batch"], found["checkpointing"], found["micro_batches"]) == (1, "full", 2)
    other = planned(capsys, "debug_unified", "--gpus", "6", "--local-batch", "5")  # without FLOPs of adapters
    assert other["setup"]["local_batch"] == 5 and set(other["fits"]) == {*SECTIONS, "generate"}


def test_moments_in_host_memory_are_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "nava_6b", "--moments", "host"])
    assert "host" in capsys.readouterr().err


def test_a_dry_run_is_spread_as_the_recipe_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ParallelConfig] = []

    def rehearse(config: Any, gpus: int) -> dict[str, Any]:
        seen.append(config.parallel)
        return {}

    monkeypatch.setattr(dry_run, "rehearse", rehearse)
    fields_set = {"replicas": 2, "activation_checkpointing": "selective", "reshard_after_forward": False}
    settings = [f"--set=pretrain.parallel.{name}={json.dumps(value)}" for name, value in fields_set.items()]
    planned(capsys, "nava_6b", "--dry-run", *settings)
    own = nava_6b().pretrain.parallel
    assert seen == [replace(own, **fields_set)]
    planned(capsys, "nava_6b", "--dry-run", *settings, "--replicas", "1")
    assert seen[1] == replace(own, **{**fields_set, "replicas": 1})


def test_options_of_a_round_are_before_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    def peak(*asked: str) -> float:
        return planned(capsys, "nava_6b", "--align", "--gpus", "64", *asked)["phases"]["nft"]["peak_gib"]

    plain = peak()
    assert peak("--base", "int8") < plain < peak("--checkpointing", "none")
    assert peak("--base", "int8") == peak("--set", "align.lora.base=int8")
    assert plain < peak("--local-batch", "2") and peak("--rank", "8") < plain
    assert plain < peak("--set", "align.parallel.reshard_after_forward=false")
