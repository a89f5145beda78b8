"""Trackers beside MLflow: the setting, TensorBoard, the example of the documentation, and faults of one."""

import csv
import dataclasses
import logging
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from titan_world import config, rows, stage_run, torchrun, write_latents

from experiments.layout import STAGES
from experiments.recipes.load import load_recipe
from experiments.runs.tensorboard import TensorBoardTracker
from experiments.runs.tracker import SpoolTracker
from experiments.runs.trackers import TrackingConfig, factories
from experiments.stages import config_of
from pretrain.tracking import JsonlTracker, Trackers, build_trackers, last_value

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "your_tracker.md"
EXAMPLE = next(block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S))


class Kept:
    def __init__(self, run="", fails=()):
        self.points, self.tags, self.fails = {}, {}, fails

    def log_metrics(self, metrics, step):
        if "log_metrics" in self.fails:
            raise ConnectionError("no answer from https://user:hunter2@example.org")
        self.points[step] = dict(metrics)

    def log_artifact(self, path, folder=""):
        if "log_artifact" in self.fails:
            raise RuntimeError("boom")

    def set_tags(self, tags):
        if "set_tags" in self.fails:
            raise RuntimeError("boom")
        self.tags |= tags


class Needy(Kept):
    def __init__(self, run):
        raise ConnectionError("no login")


class Killing(Kept):
    """Kills its rank without warning at step 5 of the first attempt."""

    def __init__(self, run, marker):
        super().__init__()
        self.marker = Path(marker)

    def log_metrics(self, metrics, step):
        if step == 5 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


NAME = f"{__name__}:Kept"


@pytest.fixture(autouse=True, scope="module")
def allowed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAVA_PLUGINS", f"{__name__},csv_tracker,nowhere,pathlib")
        yield


def test_only_names_of_trackers_are_taken():
    assert load_recipe("mini", settings=["tracking.trackers=[tensorboard, a.b:C]"]).tracking.trackers
    for setting, message in (
        ("trackers=[tensorbord]", r"trackers\[0\]: 'tensorbord' is neither"),
        ("trackers=[tensorboard, tensorboard]", r"trackers\[1\]: 'tensorboard' stands twice"),
        ("trackers=[tensorboard, 3]", r"tracking.trackers\[1\]: expected str, got 3"),
        ("options={a:B: {}}", r"options.a:B: not in trackers"),
        ("system_metrics_s=-1", "system_metrics_s: expected 0 or at least 1"),
        ("system_metrics_s=.nan", "expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_recipe("mini", settings=[f"tracking.{setting}"])
        assert "\n" not in str(caught.value)


def test_no_stage_depends_on_the_trackers():
    plain = load_recipe("mini")
    tracked = load_recipe("mini", settings=["tracking.trackers=[tensorboard]", "tracking.system_metrics_s=0"])
    assert plain != tracked
    assert [config_of(stage, plain) for stage in STAGES] == [config_of(stage, tracked) for stage in STAGES]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere:Tracker", {}, "'nowhere:Tracker': cannot be imported"),
        (f"{__name__}:Missing", {}, "has no 'Missing'"),
        (f"{__name__}:PAGE", {}, "is not a tracker: a class with log_metrics"),
        ("pathlib:Path", {}, "is not a tracker: a class with log_metrics"),
        (NAME, {"colour": 1}, "cannot be called with colour, run"),
        ("json:Tracker", {}, "--plugins json"),
    ],
)
def test_a_tracker_that_cannot_be_loaded_is_refused_before_anything_starts(name, options, message, tmp_path):
    given_options = {name: options} if options else {}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        factories(TrackingConfig(trackers=(name,), options=given_options), None)
    assert "\n" not in str(caught.value)


def test_tensorboard_lies_beside_the_spool_under_the_run(tmp_path):
    tracker = SpoolTracker(tmp_path / "out" / "tracking" / "run-1")
    own = TrackingConfig(trackers=("tensorboard", NAME), options={NAME: {"fails": []}})
    found = factories(own, tracker)
    assert list(found) == [*tracker.factory(), "experiments.runs.tensorboard:TensorBoardTracker", NAME]
    folder = found["experiments.runs.tensorboard:TensorBoardTracker"]["folder"]
    assert folder == str(tmp_path / "out" / "tensorboard" / "run-1")
    assert found[NAME] == {"fails": [], "run": "run-1"}
    assert factories(own, None) == {}


@given(fails=st.sets(st.sampled_from(["log_metrics", "log_artifact", "set_tags"])))
@settings(max_examples=8)
def test_what_a_tracker_raises_is_told_once_and_ends_nothing(fails, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    good, bad, last = Kept(), Kept(fails=fails), Kept()
    trackers = Trackers(JsonlTracker(folder / "metrics.jsonl"), [good, bad, last])
    for step in (1, 2, 3):
        trackers.log_metrics({"loss": 1.0 / step, "task": "T2A"}, step)
    trackers.log_artifact("metrics.jsonl")
    trackers.set_tags({"status": "finished"})
    trackers.close()
    for kept in (good, last):
        assert kept.points == {step: {"loss": 1.0 / step} for step in (1, 2, 3)}
        assert kept.tags["status"] == "finished"
        assert ("tracker_failed" in kept.tags) == bool(fails)
        assert "hunter2" not in str(kept.tags)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_fault_is_logged_once(tmp_path, caplog):
    trackers = Trackers(JsonlTracker(tmp_path / "metrics.jsonl"), [Kept(fails=("log_metrics",))])
    for step in (1, 2, 3):
        trackers.log_metrics({"loss": 1.0}, step)
    assert caplog.text.count("tracker Kept raised ConnectionError") == 1


def test_a_tracker_that_does_not_begin_is_refused_at_the_start_and_missed_later(caplog):
    named = {f"{__name__}:Needy": {"run": "r"}, NAME: {"run": "r"}}
    with pytest.raises(ValueError, match="test_trackers:Needy raised ConnectionError: no login"):
        build_trackers(named, 0)
    assert [type(tracker).__name__ for tracker in build_trackers(named, 4)] == ["Kept"]
    assert "goes on without it" in caplog.text


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every repeated step
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


@given(attempts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), max_size=3))
@settings(max_examples=12)
def test_points_of_tensorboard_are_unique_after_any_kills(attempts, tmp_path_factory):
    """attempts: steps done before a kill, and how many of them the last checkpoint lacks."""
    folder, kept, value = tmp_path_factory.mktemp("events"), 0, {}
    for number, (done, lost) in enumerate([*attempts, (4, 0)]):
        tracker = TensorBoardTracker(str(folder))  # of a killed process: not closed
        tracker.begin(kept)
        for step in range(kept + 1, kept + done + 1):
            value[step] = float(number)
            tracker.log_metrics({"loss": value[step]}, step)
        # files are read in the order of the second in their names, and attempts are seconds apart
        written = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        written.rename(folder / f"events.out.tfevents.{number:010d}.here")
        kept = max(kept + done - lost, 0)
    found = {point.step: point.value for point in events(folder).Scalars("loss")}
    end = max(step for step in value if value[step] == float(len(attempts)))
    assert found == {step: value[step] for step in range(1, end + 1)}
    assert len(events(folder).Scalars("loss")) == len(found)


def test_pictures_and_clips_are_shown_under_their_names(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "curve.png")
    (tmp_path / "metrics.jsonl").write_text("{}")
    tracker = TensorBoardTracker(str(tmp_path / "events"))
    tracker.begin(0)
    tracker.log_metrics({"loss": 1.0}, 7)
    tracker.log_artifact(str(tmp_path / "curve.png"), "samples/round-7")
    tracker.log_artifact(str(tmp_path / "metrics.jsonl"))
    tracker.set_tags({"status": "finished"})
    tracker.close()
    found = events(tmp_path / "events")
    assert [image.step for image in found.Images("samples/curve")] == [7]
    assert found.Tags()["tensors"] == ["tags/status/text_summary"]


def test_the_last_value_of_a_metric_is_found(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_value(path, "loss") == (0, None)
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3}\n{"step": 4, "lo')
    assert last_value(path, "loss") == (2, 1.0)


@pytest.mark.distributed
@pytest.mark.slow
def test_the_example_of_the_page_and_tensorboard_follow_a_killed_training(tmp_path, monkeypatch):
    (tmp_path / "csv_tracker.py").write_text(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(HERE), str(HERE.parent)]))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    spool = SpoolTracker(tmp_path / "out" / "tracking" / "run-1")
    page, killing = "csv_tracker:CsvTracker", f"{__name__}:Killing"
    given_options = {page: {"folder": str(tmp_path)}, killing: {"marker": str(tmp_path / "killed")}}
    tracking = TrackingConfig(trackers=(page, "tensorboard", killing), options=given_options)
    latents = write_latents(tmp_path / "latents")
    run = stage_run(tmp_path / "stage1", latents, config(), trackers=factories(tracking, spool))
    assert torchrun(run).returncode != 0  # killed at step 5, the checkpoint is that of step 4
    done = torchrun(run)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run-1.csv").open() as file:
        losses = [(int(step), float(value)) for step, name, value in csv.reader(file) if name == "loss"]
    in_rows = [(row["step"], row["loss"]) for row in rows(run) if "loss" in row]
    assert losses == in_rows and [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    found = events(tmp_path / "out" / "tensorboard" / "run-1").Scalars("loss")
    assert [(point.step, pytest.approx(point.value)) for point in found] == in_rows
    assert [row["clips_seen"] for row in rows(run) if "loss" in row] == [4, 8, 12, 16, 20, 24]
    onward = config(steps=2)
    stages = {"stage1": dataclasses.replace(onward.stage("stage1"), audio_only_batch_factor=3)}
    onward = dataclasses.replace(onward, stages=stages)
    later = stage_run(tmp_path / "stage2", latents, onward, init_from=run.out / "model")
    done = torchrun(later)
    assert done.returncode == 0, done.stderr
    seen, before = [row for row in rows(later) if "loss" in row], 24
    for row in seen:
        before += 12 if row["task"] == "T2A" else 4
        assert row["clips_seen"] == before
    assert len(seen) == 2
