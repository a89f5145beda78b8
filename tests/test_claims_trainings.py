"""Arms of claims: what they change, that their FLOPs are equal, and which learning rate they take."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from titan_world import write_latents

from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.registry import VALIDATION, ClaimArm
from experiments.studies.claims.training_rows import (
    ARMS,
    VIDEO_STAGE,
    audio_first_alone,
    mixed_from_start,
    training_rows,
)
from experiments.studies.claims.trainings import Trainings
from experiments.studies.claims.units import ClaimUnits
from experiments.studies.paradigms.flops import steps_of, total_flops
from pretrain.generation.config import GenerateConfig
from pretrain.model.flavors import flavor
from pretrain.model.plan import plan_model
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig

BOTH = {"sets": {"paired": 1.0}, "audio_sets": {"audio_only": 1.0}}


def recipe() -> PretrainConfig:
    stages = (
        StageConfig(name="stage1", steps=120, tasks={"T2A": 3.0, "T2AV": 1.0}, warmup_steps=10, **BOTH),
        StageConfig(name="stage2", steps=90, tasks={"T2A": 1.0, "T2AV": 2.0, "TI2AV": 1.0}, **BOTH),
        StageConfig(name="stage3", steps=60, tasks={"T2AV": 1.0}, sets={"paired": 1.0}, audio_sets={}),
    )
    return PretrainConfig(stages={stage.name: stage for stage in stages}, global_batch_size=4)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def trainings(latents, tmp_path) -> Trainings:
    return Trainings(ClaimsConfig(batch_factor=1.0), recipe(), latents, tmp_path / "runs", {"latents": "a"})


def counted(config: PretrainConfig, stages, latents) -> int:
    args = flavor(config.flavor)
    return sum(
        total_flops(args, steps_of(config, name, latents, config.stages[name].steps)) for name in stages
    )


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_costs_what_the_recipe_costs(name, trainings, latents):
    """Counted batch by batch over the whole schedule, against the recipe's own."""
    arm, whole = ARMS[name], recipe()
    made = trainings.at_rate(arm, 1, 1.0)
    stages = [stage for stage in made.stages if stage not in arm.beyond_budget]
    assert counted(made, stages, latents) == pytest.approx(counted(whole, whole.stages, latents), rel=0.06)
    assert made.seed == whole.seed + 1 and made.validate_every == 0
    assert stages == list(whole.stages)


def test_an_arm_differs_from_the_recipe_by_what_it_is_named_after(trainings):
    made = {name: trainings.at_rate(arm, 0, 1.0) for name, arm in ARMS.items()}
    assert made["unmasked"].objective.dropout.modality_mask == 0.0
    assert made["timbre_half_dropped"].objective.dropout.timbre_kept == 0.5
    assert made["recipe"].objective == recipe().objective and made["recipe"].stages == recipe().stages
    assert not flavor(made["plain_rope"].flavor).rate_aware_rope
    assert not flavor(made["timbre_replaces"].flavor).timbre_keeps_text
    assert list(made["from_video"].stages) == [VIDEO_STAGE, "stage1", "stage2", "stage3"]
    assert made["from_video"].stages[VIDEO_STAGE].tasks == {"T2V": 1.0}
    folders = {trainings.folder(0, config) for config in made.values()}
    assert len(folders) == len(made) - 1  # NAVA at the recipe's own rate is the recipe
    assert trainings.folder(0, made["recipe"]) != replace(trainings, data={"latents": "b"}).folder(
        0, made["recipe"]
    )


def test_smaller_batches_have_the_recipes_steps_and_lower_rates(trainings):
    half = replace(trainings, config=ClaimsConfig(batch_factor=0.5))
    made = half.at_rate(ARMS["recipe"], 0, 1.0)
    assert made.global_batch_size == recipe().global_batch_size // 2
    for name, stage in recipe().stages.items():
        assert made.stages[name] == replace(stage, lr=stage.lr * math.sqrt(0.5))


def test_blocks_of_any_share_have_equal_parameters():
    names = {arm.change(recipe()).flavor for name, arm in ARMS.items() if name.startswith("blocks_")}
    sizes = [plan_model(name)["params_total"] for name in names]
    assert len(sizes) == 5 and max(sizes) / min(sizes) < 1.01
    shares = sorted(flavor(name).num_alignment_blocks / 6 for name in names)
    assert shares == [0, 1 / 6, 2 / 6, 3 / 6, 1]


WEIGHTS = st.dictionaries(st.sampled_from(["T2A", "T2AV", "TI2AV", "T2V"]), st.floats(0.1, 5), min_size=1)


@given(st.lists(st.tuples(WEIGHTS, st.integers(1, 900)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_mix_from_the_start_has_as_many_steps_of_each_task(parts):
    stages = {
        f"s{number}": StageConfig(name=f"s{number}", tasks=tasks, steps=steps, **BOTH)
        for number, (tasks, steps) in enumerate(parts)
    }
    before = PretrainConfig(stages=stages)
    after = mixed_from_start(before)

    def steps(config, task):
        return sum(
            stage.steps * stage.tasks.get(task, 0.0) / sum(stage.tasks.values())
            for stage in config.stages.values()
        )

    for task in ("T2A", "T2AV", "TI2AV", "T2V"):
        assert steps(after, task) == pytest.approx(steps(before, task), rel=1e-6, abs=1e-5)
    assert len({json.dumps(dict(stage.tasks)) for stage in after.stages.values()}) == 1


def test_audio_first_keeps_the_first_stage_and_has_no_curated_one():
    after = audio_first_alone(recipe())
    assert after.stages["stage1"] == recipe().stages["stage1"]
    assert after.stages["stage3"].tasks == recipe().stages["stage2"].tasks
    assert after.stages["stage3"].lr == recipe().stages["stage3"].lr


def losses(folder, video, audio):
    folder.mkdir(parents=True)
    last = {"validation/video": video, "validation/audio": audio}
    (folder / VALIDATION).write_text(json.dumps({"stage3": last}))


def test_the_best_rate_is_known_when_all_were_tried(trainings):
    arm = ClaimArm(own_rate=True)
    weight = recipe().objective.audio_weight
    for factor, audio in ((0.5, 1.0), (1.0, 3.0), (2.0, 0.5)):
        assert trainings.of(arm, 0) is None
        losses(trainings.folder(0, trainings.at_rate(arm, 0, factor)), 1.0, audio / weight)
    assert trainings.best_rate(arm) == 2.0
    made = trainings.of(arm, 2)
    assert made is not None and made.stages["stage1"].lr == 2 * recipe().stages["stage1"].lr


def test_trials_come_first_and_the_chosen_one_is_not_trained_again(trainings):
    units = ClaimUnits(trainings.config, GenerateConfig(), trainings, "", {}, Path())
    rows = training_rows(ClaimsConfig(), recipe())
    first = units.needed([rows["paradigm_unified"]])
    assert [unit.label for unit in first] == [
        f"{name}_own_rate-seed0 at {rate} of its rate"
        for name in ("nava", "unified")
        for rate in ("0.5", "1", "2")
    ]
    assert len({unit.folder for unit in first}) == 6 and not any(unit.samples for unit in first)
    for number, unit in enumerate(first):
        losses(unit.folder, 1.0 + number % 3, 1.0)  # the lowest rate is the best
    then = units.needed([rows["paradigm_unified"]])
    assert len(then) == 6 + 2 * 2  # two more seeds of each
    sampled = [unit for unit in then if unit.samples]
    assert {unit.folder for unit in sampled} >= {first[0].folder, first[3].folder} and len(sampled) == 6


def test_rows_share_their_trainings(trainings):
    units = ClaimUnits(trainings.config, GenerateConfig(), trainings, "", {}, Path())
    rows = training_rows(ClaimsConfig(), recipe())
    needed = units.needed([rows["rotary"], rows["masking"], rows["timbre_form"]])
    assert len(needed) == 3 * 4  # recipe, plain_rope, unmasked, timbre_replaces
    assert [unit.seed for unit in needed] == sorted(unit.seed for unit in needed)
    mine = next(unit for unit in needed if unit.label == "recipe-seed0")
    assert len(mine.samples) == 4 and mine.run.stages.keys() == recipe().stages.keys()
