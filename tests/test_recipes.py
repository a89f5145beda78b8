import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml

from experiments.layout import STAGES, Layout
from experiments.recipes.load import as_plain, load_recipe, parse_setting, read_params, shipped_recipes
from experiments.runs.provenance import plain_path, producers, read_pipeline
from experiments.stages import config_of
from pretrain.model.flavors import flavor

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_is_plain_data(name):
    recipe = load_recipe(name, PARAMS)
    assert recipe.name == name
    assert json.loads(json.dumps(as_plain(recipe)))["pretrain"]["flavor"] == recipe.pretrain.flavor
    assert flavor(recipe.pretrain.flavor)
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        assert section.name == "name" or type(value).__dataclass_params__.frozen, section.name


def test_shipped_recipes_are_the_two():
    assert shipped_recipes() == ["mini", "nava_6b"]


@pytest.mark.parametrize("ranks", [8, 16, 64])
@pytest.mark.parametrize("name", ["nft", "grpo", "awm", "rwr", "gsb_dpo"])
def test_every_objective_of_the_full_size_alignment_divides_over_its_ranks(name, ranks):
    recipe = load_recipe("nava_6b", None, [f"align.sequence=[{name}]"])
    align, routed = recipe.alignment, recipe.alignment.rubric.routes()
    align.check_ranks(ranks)
    recipe.ray.rewards_of(list(routed))
    assert (align.num_frames, align.height, align.width) == (121, 480, 832)
    phase = align.objectives()[0].phase
    levels = getattr(phase.objective, "levels", None)
    assert levels is None or levels.shift == recipe.generate.sampler.shift
    # alignment.md 2.10: what someone has run at this size
    assert 32 <= align.lora.rank <= 64 and align.lora.alpha == 2 * align.lora.rank
    assert phase.lr <= 3e-4 and phase.micro_batch == phase.rollout_batch == 1
    if not align.needs_pairs:
        assert 8 <= phase.clips_per_prompt <= 24 and 10 <= phase.sampler.steps <= 24


def test_params_hold_the_three_stages_as_data():
    stages = load_recipe("mini", PARAMS).pretrain.stages
    written = read_params(PARAMS)["pretrain"]["stages"]
    assert list(stages) == list(written) == ["stage1", "stage2", "stage3"]
    for name, values in written.items():
        assert {"steps", "sets", "tasks", "lr"} <= set(values)
        assert (stages[name].steps, stages[name].lr) == (values["steps"], values["lr"])
    audio = [stage.tasks.get("T2A", 0.0) / sum(stage.tasks.values()) for stage in stages.values()]
    assert audio == [0.75, 0.25, 0.0]


def test_params_of_one_recipe_do_not_change_another():
    assert load_recipe("nava_6b", PARAMS) == load_recipe("nava_6b")
    assert load_recipe("mini", PARAMS) != load_recipe("mini")


def test_settings_come_after_params():
    recipe = load_recipe(
        "mini",
        PARAMS,
        ["pretrain.stages.stage1.steps=7", "pretrain.stages.stage1.lr=1e-4", "pretrain.seed=3"],
    )
    assert (
        recipe.pretrain.stages["stage1"].steps,
        recipe.pretrain.stages["stage1"].lr,
        recipe.pretrain.seed,
    ) == (7, 1e-4, 3)
    assert recipe.pretrain.stages["stage2"] == load_recipe("mini", PARAMS).pretrain.stages["stage2"]


def test_a_recipe_beside_the_command_is_found(tmp_path, monkeypatch):
    (tmp_path / "recipe_of_mine.py").write_text("from experiments.recipes.mini import mini as small\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.setenv("NAVA_PLUGINS", "recipe_of_mine")
    assert load_recipe("recipe_of_mine.small").name == "mini"


def test_a_recipe_is_found_by_its_dotted_name():
    assert load_recipe("experiments.recipes.mini.mini") == load_recipe("mini")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("mimi", [], "did you mean 'mini'"),
        ("no.such.recipe", [], "module no.such is not allowed"),
        ("mini", ["pretrain.sead=1"], r"pretrain\.sead: unknown key; did you mean 'seed'"),
        ("mini", ["pretrain.stages.stage4.steps=1"], r"stage4: unknown key; did you mean 'stage"),
        ("mini", ["pretrian.seed=1"], "did you mean 'pretrain'"),
        ("mini", ["pretrain.stages.stage1.steps=0"], "steps"),
        ("mini", ["pretrain.seed=abc"], r"pretrain\.seed: expected"),
        ("mini", ["pretrain.seed"], "expected key=value"),
        ("mini", ["pretrain=1"], "expected a mapping"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest_right_one(name, settings, says):
    with pytest.raises(ValueError, match=says) as error:
        load_recipe(name, None, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("[a, b]", ["a", "b"]),
        ("true", True),
        ("x y", "x y"),
        ("1.5", 1.5),
        ("{A: 1}", {"A": 1}),
        ("", None),
    ],
)
def test_settings_are_read_as_yaml(text, value):
    assert parse_setting(f"a.b={text}") == {"a": {"b": value}}


def test_broken_params_name_their_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("recipe: mini\npretrain: [1\nx: y\n")
    with pytest.raises(ValueError, match=r"params\.yaml:\d+: not YAML"):
        read_params(path)
    path.write_text("- a\n")
    with pytest.raises(ValueError, match="expected a mapping"):
        read_params(path)


def test_the_pipeline_is_what_the_layout_and_the_stages_say():
    pipeline = read_pipeline(ROOT)
    assert tuple(pipeline) == STAGES
    for stage, entry in pipeline.items():
        outs = [plain_path(out) for out in (*entry.get("outs", ()), *entry.get("metrics", ()))]
        assert str(Layout().output_of(stage)) in outs
        assert entry["cmd"] == f"python -m experiments.stages {stage}"


def test_what_the_pipeline_depends_on_exists():
    for stage, entry in read_pipeline(ROOT).items():
        for dep in map(plain_path, entry["deps"]):
            assert dep.startswith(("out/", "reports/")) or (ROOT / dep).exists(), f"{stage}: {dep}"


def test_every_section_of_params_is_watched_by_its_stage():
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    watched = {section for entry in entries for section in entry.get("params", ())}
    assert watched == set(read_params(PARAMS))


def test_the_three_stages_are_linked_and_generation_follows_the_last():
    assert producers("pretrain_stage2", ROOT)[0] == "pretrain_stage1"
    assert producers("pretrain_stage3", ROOT)[0] == "pretrain_stage2"
    assert producers("generate", ROOT)[0] == "pretrain_stage3"
    assert producers("corpus", ROOT) == []


def test_a_training_stage_does_not_depend_on_the_numbers_of_another():
    before = load_recipe("mini", PARAMS)
    after = load_recipe("mini", PARAMS, ["pretrain.stages.stage3.steps=1"])
    for stage in ("pretrain_stage1", "pretrain_stage2"):
        assert config_of(stage, before) == config_of(stage, after)
    assert config_of("pretrain_stage3", before) != config_of("pretrain_stage3", after)
