"""Trainings that are interrupted, changed, pulled and extended: nothing is lost, the numbers are right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from test_titan_resume import assert_same_weights
from titan_ranks import run_ranks
from titan_world import config, pretend_state, stage_run, write_latents

from experiments import stages
from experiments.continuing import Wish, decide, decide_for_dvc
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.runs.outputs import KnownOutputs
from experiments.runs.provenance import md5_of
from experiments.runs.run import read_record
from experiments.runs.trackers import TrackingConfig
from experiments.stages import run_where_needed, training_of
from pretrain.launch.continuing import claim, verdict_of
from pretrain.launch.stage_run import StageRun
from pretrain.recipe import CheckpointConfig, ParallelConfig, PretrainConfig

CODE = {"pretrain/titan": "of-today"}


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


def flat_rate(steps: int, **changes: Any) -> PretrainConfig:
    """Without decay, so that what was trained does not depend on the number of steps to come."""
    recipe = config(steps=steps, interval=1, **changes)
    stage = dataclasses.replace(recipe.stages["stage1"], decay_fraction=0.0)
    return dataclasses.replace(recipe, stages={"stage1": stage})


@pytest.fixture(scope="module")
def five(latents, tmp_path_factory) -> StageRun:
    run = stage_run(tmp_path_factory.mktemp("five"), latents, flat_rate(5))
    assert run_ranks(run.save()) == [0]
    return run


def with_config(run: StageRun, **changes: Any) -> StageRun:
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **changes))


def record(run: StageRun) -> dict[str, Any]:
    return json.loads((run.out / "run.json").read_text())


@pytest.mark.distributed
def test_neutral_fields_change_no_number_of_an_interrupted_run(five, latents, tmp_path):
    run = stage_run(tmp_path / "run", latents, five.config)
    assert run_ranks(run.save(), mishap="kill@2") == [-9]
    other = with_config(
        run,
        log_every=2,
        validate_every=2,
        prefetch=1,
        checkpoint=CheckpointConfig(interval=3, keep_last=1, asynchronous=True),
        parallel=ParallelConfig(activation_checkpointing="full", reshard_after_forward=False),
    )
    assert claim(other).action == "resume"
    assert run_ranks(other.save()) == [0]
    assert_same_weights(other, five)
    (resumed,) = record(other)["resumed"]
    assert (resumed["step"], resumed["as"]) == (2, "resumed")
    assert ["checkpoint.interval", 1, 3] in resumed["changes"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "changes", [{"local_batch_size": 2}, {"parallel": ParallelConfig(shard_blocks=False)}]
)
def test_work_cut_otherwise_gives_the_same_weights_but_for_rounding(five, latents, tmp_path, changes):
    run = stage_run(tmp_path / "run", latents, dataclasses.replace(five.config, **changes))
    assert run_ranks(run.save()) == [0]
    whole, cut = (load_file(each.out / "model" / "model.safetensors") for each in (five, run))
    assert (
        max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 5e-5
    )  # a step moves them by 1e-3


@pytest.mark.distributed
def test_a_finished_stage_is_extended_from_its_last_state(five, latents, tmp_path):
    run = stage_run(tmp_path / "run", latents, flat_rate(3))
    assert run_ranks(run.save()) == [0]
    longer = dataclasses.replace(run, config=five.config)
    assert claim(longer).action == "extend"
    moved = list((tmp_path / ".trash").iterdir())
    assert [(path / "config.json").is_file() for path in moved] == [True]  # the model of three steps
    assert run_ranks(longer.save()) == [0]
    assert_same_weights(longer, five)
    assert record(longer)["resumed"] == [
        {"step": 3, "as": "extended", "changes": [["stages.stage1.steps", 3, 5]]}
    ]
    assert verdict_of(longer).action == "keep" and verdict_of(run).action == "refuse"  # not shortened
    with pytest.raises(ValueError, match=r"stages\.stage1\.lr 0\.001, asked for 0\.5"):
        stage = dataclasses.replace(five.config.stages["stage1"], lr=0.5)
        claim(dataclasses.replace(with_config(longer, stages={"stage1": stage}), anyway=True))


# From here on nothing is trained: a folder, its record, and what is decided.


@pytest.fixture
def job(latents, tmp_path, monkeypatch) -> StageJob:
    pretraining = dataclasses.replace(flat_rate(5), latents=str(latents))
    recipe = SimpleNamespace(name="own", pretrain=pretraining, tracking=TrackingConfig())
    monkeypatch.setattr("experiments.pipeline.pretrain.code_digests", lambda stage, root: CODE)
    return StageJob(recipe=recipe, layout=Layout(out=tmp_path / "out"), root=tmp_path)


def trained(job: StageJob, finished: bool = True, steps: int = 5) -> StageRun:
    """A folder as a training of these steps leaves it."""
    run: Any = training_of("pretrain_stage1", job)
    run.out.mkdir(parents=True)
    claim(run)
    run.save()
    pretend_state(run.out, steps)
    if finished:
        (run.out / "model").mkdir()
        (run.out / "model" / "config.json").write_text('{"checkpoint_id": "c"}')
        state = {"status": "finished", "stage": "stage1", "step": steps, "steps": steps, "model_id": "c"}
        (run.out / "state.json").write_text(json.dumps(state))
    return run


def asked(job: StageJob, code: dict[str, str] | None = None, **changes: Any) -> tuple[StageRun, StageJob]:
    pretraining = dataclasses.replace(job.recipe.pretrain, **changes)
    other = dataclasses.replace(
        job, recipe=SimpleNamespace(name="own", pretrain=pretraining, tracking=TrackingConfig())
    )
    run: Any = training_of("pretrain_stage1", other)
    return dataclasses.replace(run, code=code or CODE), other


def lock(job: StageJob, run: StageRun, code: str) -> None:
    """dvc.lock as it is in a clone, and no record of a run here."""
    (job.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"pretrain_stage1": {"cmd": "x"}}}))
    out = {"path": str(run.out.relative_to(job.root)), "md5": md5_of(run.out)}
    deps = [{"path": "pretrain/titan", "md5": code}, {"path": "out/latents", "md5": "1.dir"}]
    entry = {"pretrain_stage1": {"cmd": "x", "deps": deps, "outs": [out]}}
    (job.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entry}))


def test_a_kept_stage_without_a_record_gets_one_of_what_is_known(job, monkeypatch):
    run = trained(job)
    lock(job, run, "of-code")
    monkeypatch.setattr("experiments.stages.config_of", lambda stage, recipe: {"seed": 0})
    run_where_needed("pretrain_stage1", job)
    path = job.layout.runs / "pretrain_stage1.json"  # which dvc.yaml has as an output
    record = read_record(job.layout, "pretrain_stage1")
    assert record is not None and (record.git_commit, record.key) == ("unknown", "")
    assert (record.output_md5, record.checkpoint) == (md5_of(run.out), "c")
    known = KnownOutputs(job.layout, job.root)
    assert known.maker_of(run.out) == ""  # lineage does not take it for a run
    path.write_text(path.read_text().replace('"unknown"', '"0123"'))
    run_where_needed("pretrain_stage1", job)
    kept = read_record(job.layout, "pretrain_stage1")
    assert kept is not None and kept.git_commit == "0123"


LOGGING = {"log_every": 7, "checkpoint": CheckpointConfig(interval=9)}


def test_dvc_goes_on_with_other_logging_and_code_and_says_so(job, capsys):
    trained(job, finished=False, steps=2)
    run, other = asked(job, {"pretrain/titan": "of-tomorrow"}, **LOGGING)
    decision = decide_for_dvc(run, other)
    said = capsys.readouterr().out
    assert decision.train and decision.go_on
    assert "warning: goes on with other code than it began with: pretrain/titan" in said
    assert (
        "goes on from step 2 with checkpoint.asynchronous False -> True, checkpoint.interval 1 -> 9" in said
    )
    assert "log_every 1 -> 7" in decision.notes["nava.resumed_with"]


def test_dvc_keeps_a_finished_stage_with_other_logging_and_trains_it_with_other_code(job, capsys):
    run = trained(job)
    before = md5_of(run.out)
    assert not decide_for_dvc(*asked(job, **LOGGING)).train
    assert md5_of(run.out) == before  # what downstream stages watch
    decision = decide_for_dvc(*asked(job, {"pretrain/titan": "of-tomorrow"}))
    assert decision.train and decision.go_on is False
    assert "another identity (code: pretrain/titan)" in capsys.readouterr().out
    assert decide_for_dvc(*asked(job, seed=4)).go_on is False
    assert "another identity (seed 0 -> 4)" in capsys.readouterr().out


def test_dvc_does_not_extend_as_a_result_follows_from_its_settings(job):
    trained(job, steps=3)
    stage = dataclasses.replace(job.recipe.pretrain.stages["stage1"], steps=9)
    assert decide_for_dvc(*asked(job, stages={"stage1": stage})).go_on is False


@pytest.mark.parametrize("earlier_format", [True, False])
def test_a_pulled_stage_is_kept_by_its_own_record_and_the_lock(job, capsys, earlier_format):
    run = trained(job)
    if earlier_format:
        (run.out / "run.json").write_text(json.dumps(run.identity()))
    lock(job, run, "of-today")
    assert not decide_for_dvc(*asked(job)).train
    assert not decide(*asked(job), Wish()).train
    assert f"finished, with these inputs and settings; kept, its model is {run.out}/model" in (
        capsys.readouterr().out
    )


def test_of_a_record_without_code_the_lock_tells_which_made_it(job, capsys):
    run = trained(job)
    (run.out / "run.json").write_text(json.dumps(run.identity()))
    lock(job, run, "of-yesterday")
    assert decide_for_dvc(*asked(job)).go_on is False
    assert "another identity (code: pretrain/titan)" in capsys.readouterr().out
    assert not decide(*asked(job), Wish()).train
    assert "the code differs since: pretrain/titan" in capsys.readouterr().out


def test_a_finished_stage_whose_files_were_changed_exports_its_model_again(job, capsys):
    run = trained(job)
    lock(job, run, "of-today")
    (run.out / "model" / "config.json").write_text('{"checkpoint_id": "another"}')
    decision = decide_for_dvc(*asked(job))
    assert (decision.train, decision.go_on) == (True, True) and not (run.out / "state.json").exists()
    assert "changed since it was finished; its model is exported again from step 5" in capsys.readouterr().out


def test_what_counts_is_refused_by_name_with_the_ways_to_go(job):
    trained(job, finished=False, steps=2)
    line = r"other inputs or settings \(seed 0, asked for 4\); give --resume-anyway to go on all the same, "
    with pytest.raises(
        ValueError, match=line + r"--move-aside .*/out/\.trash\), or --out for another folder"
    ):
        decide(*asked(job, seed=4), Wish())
    assert decide(*asked(job, seed=4), Wish(anyway=True)).go_on is True
    assert decide(*asked(job, seed=4), Wish(aside=True)).go_on is False
    assert decide(*asked(job), Wish(aside=True)).go_on is True  # the same is gone on with
    assert decide(*asked(job), Wish(resume=False)).go_on is False
    with pytest.raises(ValueError, match="exclude each other"):
        Wish(resume=False, aside=True)


def test_states_are_not_left_behind_in_another_place(job, tmp_path):
    """With another checkpoint.folder a run would begin at step 1 without a word."""
    trained(job, finished=False, steps=2)
    elsewhere: dict[str, Any] = {"checkpoint": CheckpointConfig(folder=str(tmp_path / "states"))}
    for wish in (Wish(), Wish(anyway=True)):
        with pytest.raises(
            ValueError, match=r"checkpoint\.folder \(states are in the first\) .*/stage1/checkpoint, "
        ):
            decide(*asked(job, **elsewhere), wish)
    assert decide(*asked(job, **elsewhere), Wish(aside=True)).go_on is False


def test_states_elsewhere_make_room_with_their_folder(job, tmp_path):
    there = CheckpointConfig(folder=str(tmp_path / "states"))
    run, other = asked(job, checkpoint=there)
    claim(run)
    pretend_state(run.out, 2)
    (run.out / "checkpoint").rename(tmp_path / "moved")
    (tmp_path / "states").mkdir()
    (tmp_path / "moved").rename(run.checkpoints)
    assert decide_for_dvc(*asked(other, seed=4)).go_on is False
    assert not run.checkpoints.exists() and len(list((tmp_path / "states" / ".trash").iterdir())) == 1


def test_a_finished_one_is_kept_all_the_same(job, capsys):
    trained(job)
    with pytest.raises(ValueError, match="--resume-anyway to keep it as it is"):
        decide(*asked(job, seed=4), Wish())
    assert not decide(*asked(job, seed=4), Wish(anyway=True)).train
    assert "kept as it is although seed 0 -> 4" in capsys.readouterr().out


def test_an_extension_says_what_becomes_of_the_learning_rate(job, capsys):
    trained(job, steps=3)
    stage = dataclasses.replace(job.recipe.pretrain.stages["stage1"], steps=9)
    decision = decide(*asked(job, stages={"stage1": stage}), Wish())
    assert decision.go_on and decision.notes["nava.extended"] == "5 -> 9"
    assert "does not decay, so this is what a run of that length gives" in capsys.readouterr().out
    stage = dataclasses.replace(stage, decay_fraction=0.5)
    assert decide(*asked(job, stages={"stage1": stage}), Wish()).go_on
    assert "so a run of that length from the start gives other weights" in capsys.readouterr().out


def test_the_stage_moves_what_makes_room_and_keeps_what_goes_on(job, monkeypatch, capsys):
    """`run_stage` by what was decided: the folder that the stage finds, and the run's key."""
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda spool, root: None)
    found: list[bool] = []

    def work(stage, job, tracker):
        found.append((job.layout.pretrain("stage1") / "checkpoint" / "step-2").is_dir())
        job.layout.pretrain("stage1").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(stages, "_work", work)
    monkeypatch.setattr(stages, "config_of", lambda stage, recipe: {"seed": recipe.pretrain.seed})
    trained(job, finished=False, steps=2)
    stages.run_where_needed("pretrain_stage1", asked(job, **LOGGING)[1])
    stages.run_where_needed("pretrain_stage1", asked(job, seed=4)[1])
    assert found == [True, False]
    (moved,) = job.layout.trash.iterdir()
    assert (moved / "checkpoint" / "step-2" / ".metadata").is_file() and moved.name in capsys.readouterr().out
