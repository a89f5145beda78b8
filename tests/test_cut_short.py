"""A command that is killed after its training, or while it extends one: nothing is lost or mistaken."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetune_world
import pytest
from test_continuing import flat_rate
from titan_world import pretend_state, write_latents

from experiments.commands import pretrain as command
from experiments.continuing import Wish, decide
from experiments.job import StageJob
from experiments.layout import Layout
from experiments.runs.run import marker_of, read_record
from experiments.runs.tracker import SpoolTracker
from experiments.runs.trackers import TrackingConfig
from experiments.stages import run_where_needed, training_of
from finetune.sft.config import BASE
from pretrain.launch import continuing, launch
from pretrain.launch.continuing import claim, verdict_of
from pretrain.launch.stage_run import StageRun

STAGE = "pretrain_stage1"
KEY = "pretrain_stage1-the-killed-run"


@pytest.fixture
def job(tmp_path, monkeypatch) -> StageJob:
    pretraining = dataclasses.replace(flat_rate(5), latents=str(write_latents(tmp_path / "latents")))
    recipe = SimpleNamespace(name="own", pretrain=pretraining, tracking=TrackingConfig(), generate=None)
    monkeypatch.setattr("experiments.pipeline.pretrain.code_digests", lambda stage, root: {})
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda spool, root: None)
    return StageJob(recipe=recipe, layout=Layout(out=tmp_path / "out"), root=tmp_path, nproc=1)


def of_steps(job: StageJob, steps: int) -> StageJob:
    stage = dataclasses.replace(job.recipe.pretrain.stages["stage1"], steps=steps)
    pretraining = dataclasses.replace(job.recipe.pretrain, stages={"stage1": stage})
    recipe = SimpleNamespace(**{**vars(job.recipe), "pretrain": pretraining})
    return dataclasses.replace(job, recipe=recipe)


def finished_by(job: StageJob, key: str = KEY) -> StageRun:
    """The folder of a stage that the run `key` has trained to its end."""
    run: Any = training_of(STAGE, job)
    tracker = SpoolTracker(job.layout.tracking / key)
    run = dataclasses.replace(run, trackers=tracker.factory())
    steps = job.recipe.pretrain.stages["stage1"].steps
    run.out.mkdir(parents=True)
    claim(run)
    run.save()
    pretend_state(run.out, steps)
    (run.out / "model").mkdir()
    (run.out / "model" / "config.json").write_text(json.dumps({"checkpoint_id": "c" * 16, "step": steps}))
    state = {"status": "finished", "stage": "stage1", "step": steps, "steps": steps, "model_id": "c" * 16}
    (run.out / "state.json").write_text(json.dumps(state))
    return run


def killed(job: StageJob, key: str = KEY) -> None:
    """What a killed command leaves of its run, as the sender ends it."""
    marker_of(STAGE, job.layout).parent.mkdir(parents=True)
    marker_of(STAGE, job.layout).write_text(json.dumps({"key": key, "fingerprint": "of the inputs then"}))
    SpoolTracker(job.layout.tracking / key).finish("KILLED")


def events(job: StageJob, key: str = KEY) -> list[dict[str, Any]]:
    lines = (job.layout.tracking / key / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("by", ["nava", "dvc"])
def test_a_run_that_was_killed_after_its_training_is_ended_by_the_same_command(job, by, monkeypatch, capsys):
    monkeypatch.setattr(launch, "run_ranks", lambda *_: pytest.fail("nothing is left to train"))
    finished_by(job)
    killed(job)
    again = (
        (lambda: command._train_stages(job, "stage1", Wish()))
        if by == "nava"
        else (lambda: run_where_needed(STAGE, job))
    )
    again()
    assert "nothing is trained again, the run goes on to its end" in capsys.readouterr().out
    record = read_record(job.layout, STAGE)
    assert record and record.key == KEY and record.checkpoint == "c" * 16 and record.output_md5
    assert not marker_of(STAGE, job.layout).exists()
    found = events(job)
    assert "model" in [event["kind"] for event in found] and found[-1]["status"] == "FINISHED"
    again()
    assert "kept" in capsys.readouterr().out and len(events(job)) == len(found)


def test_a_marker_of_another_run_says_nothing_of_this_folder(job, capsys):
    finished_by(job)
    killed(job, "pretrain_stage1-another")
    command._train_stages(job, "stage1", Wish())
    assert "kept" in capsys.readouterr().out and read_record(job.layout, STAGE) is None


def test_a_marker_that_a_recorded_run_left_is_removed(job, capsys):
    finished_by(job)
    killed(job)
    command._train_stages(job, "stage1", Wish())
    before = events(job)
    marker_of(STAGE, job.layout).write_text(json.dumps({"key": KEY, "fingerprint": ""}))
    command._train_stages(job, "stage1", Wish())
    assert events(job) == before and not marker_of(STAGE, job.layout).exists()


@pytest.mark.parametrize("at", ["move_aside", "unlink", "write_record"])
@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
def test_a_kill_inside_an_extension_leaves_a_training_that_goes_on_to_the_new_length(
    job, at, after, monkeypatch
):
    longer = of_steps(job, 9)
    finished_by(job)
    owner: Any = Path if at == "unlink" else continuing
    do = getattr(owner, at)

    def cut(*given: Any, **options: Any) -> None:
        if after:
            do(*given, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(owner, at, cut)
        claim(training_of(STAGE, longer))
    verdict = verdict_of(training_of(STAGE, longer))
    assert verdict.action == ("resume" if (at, after) == ("write_record", True) else "extend")
    assert decide(training_of(STAGE, longer), longer, Wish()).go_on
    claim(training_of(STAGE, longer))
    run = training_of(STAGE, longer)
    assert verdict_of(run).action == "resume" and launch.finished(run.out) is None
    (model,) = job.layout.trash.glob("*-model-*")
    assert json.loads((model / "config.json").read_text())["step"] == 5


def test_one_that_an_earlier_version_left_goes_on_and_its_model_is_moved_aside(job):
    longer = of_steps(job, 9)
    run: Any = training_of(STAGE, longer)
    finished_by(job)
    continuing.write_record(run.out, run, verdict_of(run))  # killed here, before the end was taken away
    assert verdict_of(run).action == "resume" and not verdict_of(run).finished
    claim(run)
    assert launch.finished(run.out) is None and verdict_of(run).action == "resume"
    assert [path.name.startswith("pretrain_stage1-model") for path in job.layout.trash.iterdir()] == [True]


@pytest.mark.parametrize("killed_after", [0, 1, 2], ids=lambda moved: f"{moved} moved")
def test_an_extended_fine_tuning_keeps_its_shorter_adapter_in_the_trash(tmp_path, killed_after, monkeypatch):
    world = finetune_world.write_world(tmp_path / "world")
    run = finetune_world.finetune_run(world, tmp_path / "run", finetune_world.config(4), trash=tmp_path / "t")
    pretend_state(run.out, 4)
    for name in ("model", "adapter"):
        (run.out / name).mkdir()
        (run.out / name / "config.json").write_text(name)
    (run.out / "state.json").write_text(json.dumps({"status": "finished", "step": 4, "steps": 4}))
    wanted, move, moved = finetune_world.config(6), continuing.move_aside, []

    def cut(path: Path, *given: Any) -> None:
        if len(moved) == killed_after:
            raise KeyboardInterrupt
        moved.append(path)
        move(path, *given)

    longer = dataclasses.replace(run, finetune=wanted, config=wanted.as_pretraining("debug", {BASE: 1.0}))
    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(continuing, "move_aside", cut)
        claim(longer)
    claim(longer)
    assert launch.finished(run.out) is None and not (run.out / "adapter").exists()
    kept = [(path / "config.json").read_text() for path in (tmp_path / "t").iterdir()]
    assert sorted(kept) == ["adapter", "model"]
