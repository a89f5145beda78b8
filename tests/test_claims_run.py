"""A study of claims goes on where it stopped, trains each arm once and tries rates before it chooses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from titan_world import write_latents

from experiments.layout import Layout
from experiments.runs.tracker import RUN_KEY
from experiments.studies.claims.config import ClaimsConfig
from experiments.studies.claims.one_unit import core_seconds
from experiments.studies.claims.run import METRICS, ClaimsRecipe, study_claims
from pretrain.generation.config import GenerateConfig
from pretrain.launch.launch import StageResult
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig

BOTH = {"sets": {"paired": 1.0}, "audio_sets": {"audio_only": 1.0}}
CONFIG = ClaimsConfig(
    seeds=2, noise_seeds=2, num_prompts=3, scales=(), lr_factors=(1.0, 2.0), batch_factor=1.0, resamples=50
)


class Machine:
    """Stands for trainings, generation and scoring; notes what is asked, and breaks at one place."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, float]] = []
        self.made: list[Path] = []
        self.breaks_at = -1

    def train(self, config, stage, latents, out, *, codec_id, init_from, trackers) -> StageResult:
        if stage == next(iter(config.stages)):
            assert init_from is None
            self.trained.append((config.flavor, config.stages[stage].lr))
        else:
            assert init_from is not None
        (out / "model").mkdir(parents=True, exist_ok=True)
        losses = {
            name: config.stages[stage].lr for name in ("video", "audio", "T2V/video")
        }  # the lowest rate is the best
        row = {"step": 1, **{f"validation/{name}": value for name, value in losses.items()}}
        (out / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return StageResult("finished", 1, out / "model", "id")

    def generate(self, config, model, codec, prompts, out, limit, aside) -> None:
        if len(self.made) == self.breaks_at:
            raise ValueError("the machine broke")
        self.made.append(out)
        out.mkdir(parents=True)
        self.last = config

    def score(self, clips: Path, scoring, out: Path) -> None:
        value = self.last.sampler.guidance.align_audio + 0.1 * (self.last.seed + 1)
        pairs = [[value + 0.01 * place, 1.0] for place in range(3)]
        metrics = dict.fromkeys(METRICS, pairs)
        out.write_text(json.dumps({"data_ids": ["a", "b", "c"], "metrics": metrics, "reasons": {}}))


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine, here = Machine(), "experiments.studies.claims"
    monkeypatch.setattr("pretrain.launch.launch.pretrain_stage", machine.train)
    monkeypatch.setattr(f"{here}.one_unit.generate", machine.generate)
    monkeypatch.setattr(f"{here}.one_unit.score_clips", machine.score)
    monkeypatch.setattr(f"{here}.run.voices_of", lambda corpus: None)
    monkeypatch.setattr("experiments.studies.harness.ensure_sender", lambda *_: None)

    def run_all(name, runs, work_of, cores) -> None:
        for run in runs:
            if not run.finished:
                work_of(run)()

    monkeypatch.setattr(f"{here}.run.run_all", run_all)
    return machine


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(out=tmp_path / "out")
    files = {
        layout.codec / "config.json": {"codec_id": "test-codec"},
        layout.corpus / "validation.jsonl": {},
        layout.syncnet / "judge" / "config.json": {},
        layout.prompts / "pretrain_seen.jsonl": {"prompt": "Say <S>one<E>."},
        layout.prompts / "pretrain_dialogue.jsonl": {"prompt": "Say <S>one<E>."},
        tmp_path / "model" / "config.json": {"checkpoint_id": "0123"},
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    write_latents(layout.latents)
    return layout


@pytest.fixture
def recipe() -> ClaimsRecipe:
    stages = {
        "stage1": StageConfig(name="stage1", steps=30, tasks={"T2A": 3.0, "T2AV": 1.0}, **BOTH),
        "stage2": StageConfig(name="stage2", steps=20, tasks={"T2A": 1.0, "T2AV": 3.0}, **BOTH),
    }
    pretrain = PretrainConfig(stages=stages, global_batch_size=4)
    return ClaimsRecipe("mini", CONFIG, pretrain, GenerateConfig())


def test_a_broken_study_goes_on_where_it_stopped(machine, layout, recipe, tmp_path):
    machine.breaks_at = 3
    rows = ["guidance_align", "guidance_text"]
    with pytest.raises(ValueError, match="the machine broke"):
        study_claims(recipe, layout, tmp_path / "model", rows)
    key = (layout.out / "study" / "claims" / RUN_KEY).read_text()
    page = study_claims(recipe, layout, tmp_path / "model", only_page=True)
    assert (layout.out / "study" / "claims" / RUN_KEY).read_text() == key  # the study's run goes on
    assert page["claims"]["guidance_align"]["seeds"] == 1 and len(machine.made) == 3
    machine.breaks_at = -1
    study = study_claims(recipe, layout, tmp_path / "model", rows)
    assert len(machine.made) == 2 * 3 == len(set(machine.made))  # none, align 2, text 2; two noise seeds
    row = study["claims"]["guidance_align"]
    assert (row["seeds"], row["verdict"]) == (2, "favours")
    assert row["contrasts"][0]["differences"]["sync_judge"]["mean"] == pytest.approx(2.0)
    assert study["claims"]["guidance_timbre"]["verdict"] == "not run"
    study_claims(recipe, layout, tmp_path / "model", rows)
    assert len(machine.made) == 6
    text = (layout.out / "study" / "claims.md").read_text()
    assert text.count("**favours**") == 1 and "0 seeds: not run" in text
    assert json.loads((layout.out / "study" / "claims.json").read_text()) == study


def test_rates_are_tried_once_and_the_best_is_trained_with_the_other_seeds(machine, layout, recipe, tmp_path):
    study = study_claims(recipe, layout, tmp_path / "no_model", ["paradigm_unified"])
    lr = recipe.pretrain.stages["stage1"].lr
    tried = [(name, factor * lr) for name in ("mini", "unified") for factor in (1.0, 2.0)]
    assert machine.trained[:4] == tried
    # the second seed, at the best rate; the first seed's is the trial
    assert sorted(machine.trained[4:]) == [("mini", lr), ("unified", lr)]
    row = study["claims"]["paradigm_unified"]
    assert row["seeds"] == 2 and row["verdict"] == "not told apart"
    assert {"sync_judge", "validation/T2V/video"} <= row["contrasts"][0]["differences"].keys()
    made = row["arms"]["unified_own_rate"]
    weight = recipe.pretrain.objective.video_weight + recipe.pretrain.objective.audio_weight
    assert made["rates"] == {"1": pytest.approx(weight * lr), "2": pytest.approx(2 * weight * lr)}
    assert (made["flavor"], made["steps_beyond"], row["arms"].keys()) == (
        "unified",
        0,
        {"nava_own_rate", "unified_own_rate"},
    )
    page = (layout.out / "study" / "claims.md").read_text()
    assert "1 of the recipe's, the lowest tried (validation loss 1: " in page
    assert "| measure | unified_own_rate | nava_own_rate | nava_own_rate against unified_own_rate |" in page
    deciding = next(line for line in page.splitlines() if line.startswith("| sync_judge ↑ (decides) |"))
    assert deciding.count("|") == 5 and "+0.000" in deciding
    folders = list((layout.out / "study" / "claims" / "runs").glob("*"))
    cost = sum(core_seconds(folder) for folder in folders) / 3600
    assert len(folders) == 6 and row["core_hours"] == pytest.approx(cost, abs=5e-4)  # with the trials


def test_arms_of_several_rows_are_trained_once_and_one_seed_is_no_verdict(machine, layout, recipe, tmp_path):
    stages = dict(recipe.pretrain.stages)
    stages["stage2"] = replace(stages["stage2"], lr=stages["stage1"].lr / 2)
    pretrain = replace(recipe.pretrain, stages=stages)
    one = replace(recipe, claims=replace(CONFIG, seeds=1), pretrain=pretrain)
    study = study_claims(one, layout, tmp_path / "no_model", ["masking", "warm_start"])
    assert [name for name, _ in machine.trained] == ["mini"] * 3  # recipe, unmasked, from_video
    assert study["claims"]["masking"]["verdict"] == "one seed"
    assert "one seed: no verdict" in (layout.out / "study" / "claims.md").read_text()
    assert len(machine.made) == 3 + 2 + 1  # the recipe's model also for the row on the warm start
    warm = study["claims"]["warm_start"]
    assert warm["arms"]["from_video"]["steps_beyond"] == 25 and warm["arms"]["recipe"]["steps_beyond"] == 0
    assert warm["arms"]["from_video"]["flops"] > 1.1 * warm["arms"]["recipe"]["flops"]
    forgotten = warm["contrasts"][1]["differences"]
    assert [*forgotten] == ["validation/T2V/video"]  # of a stage there is no clip
    assert forgotten["validation/T2V/video"]["mean"] == pytest.approx(-stages["stage2"].lr, abs=1e-6)


def test_rows_that_a_recipe_cannot_be_asked_are_refused_before_anything_runs(
    machine, layout, recipe, tmp_path
):
    def study(rows, only_page=False, **pretrain):
        changed = replace(recipe, pretrain=replace(recipe.pretrain, **pretrain))
        return study_claims(changed, layout, tmp_path / "model", rows, only_page)

    with pytest.raises(
        ValueError, match=r"claim schedule_mixed: it needs 3 stages, the recipe has 2; .*--rows"
    ):
        study(["schedule_mixed"])
    with pytest.raises(
        ValueError, match=r"claim rotary: .* size of `mini`, the recipe's flavor is `dual_tower`"
    ):
        study(["rotary"], flavor="dual_tower")
    with pytest.raises(ValueError, match="claim schedule_mixed: "):
        study([])
    assert not machine.trained and not machine.made
    page = study([], only_page=True, flavor="dual_tower")
    assert page["claims"]["rotary"]["refused"] and not page["claims"]["masking"]["refused"]
    assert "not asked of this recipe: its arms are" in (layout.out / "study" / "claims.md").read_text()
