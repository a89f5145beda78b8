import json
import math
import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import Timeout

from experiments.layout import Layout
from experiments.runs import run as runs
from experiments.runs import sender as tracking_send
from experiments.runs.memory import PeakMemory
from experiments.runs.run import read_record, tracked, unchanged
from experiments.runs.sender import Unreachable, flush, sender_lock, store_uri, wait_until_sent
from experiments.runs.spool import SpooledRun, spooled_runs
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key


class FakeStore:
    """Takes events like MLflow; `broken` makes it refuse those of one kind."""

    def __init__(self, uri="fake", broken=""):
        self.uri, self.broken, self.taken, self.runs = uri, broken, [], {}

    def _take(self, kind, run_id, what):
        if kind == self.broken:
            raise OSError("no route to host")
        self.taken.append((kind, run_id, what))

    def announce(self, key, event, run_id=""):
        self._take("announce", key, event["tags"])
        return self.runs.setdefault(key, f"id-{len(self.runs)}")

    def start(self, key, event, run_ids, run_id=""):
        self._take("start", key, event["parents"])
        return self.runs.setdefault(key, f"id-{len(self.runs)}")

    def find(self, key):
        return self.runs.get(key, "")

    def note(self, run_id, event, run_ids):
        self._take("note", run_id, event["text"])

    def metrics(self, run_id, events):
        self._take("metrics", run_id, [(event["step"], event["values"]) for event in events])

    def tags(self, run_id, event):
        self._take("tags", run_id, event["values"])

    def artifact(self, run_id, event):
        self._take("artifact", run_id, event["path"])

    def model(self, run_id, event):
        self._take("model", run_id, event["name"])

    def finish(self, run_id, event):
        self._take("finish", run_id, event["status"])


@pytest.fixture(autouse=True)
def no_sender(monkeypatch):
    monkeypatch.setattr(runs, "ensure_sender", lambda spool, root: None)


def write_run(spool, parents=None):
    tracker = SpoolTracker(spool / new_run_key("train"))
    tracker.start(RunStart(name="train", parents=parents or {}))
    for step in range(3):
        tracker.log_metrics({"loss": 1.0 / (step + 1)}, step)
    tracker.set_tags({"a": "b"})
    tracker.log_metrics({"loss": math.nan}, 3)
    tracker.finish("FINISHED")
    return tracker


def test_events_arrive_once_in_order_and_metrics_in_batches(tmp_path):
    run = SpooledRun(write_run(tmp_path).folder)
    store = FakeStore()
    run.send(store)
    run.send(store)
    assert [kind for kind, _, _ in store.taken] == ["start", "metrics", "tags", "metrics", "finish"]
    assert [step for step, _ in store.taken[1][2]] == [0, 1, 2]
    assert math.isnan(store.taken[3][2][0][1]["loss"])
    assert run.pending("fake") == 0 and not run.has_pending("fake") and run.run_id("fake") == "id-0"


@pytest.mark.parametrize("broken", ["start", "metrics", "tags", "finish"])
def test_what_an_outage_kept_back_is_sent_later(tmp_path, broken):
    run = SpooledRun(write_run(tmp_path).folder)
    store = FakeStore(broken=broken)
    with pytest.raises(OSError, match="no route"):
        run.send(store)
    before = list(store.taken)
    store.broken = ""
    run.send(store)
    assert [kind for kind, _, _ in store.taken] == ["start", "metrics", "tags", "metrics", "finish"]
    assert store.taken[: len(before)] == before


def test_another_store_gets_everything_from_the_start(tmp_path):
    run = SpooledRun(write_run(tmp_path).folder)
    run.send(FakeStore("one"))
    assert run.has_pending("two")
    other = FakeStore("two")
    run.send(other)
    assert len(other.taken) == 5


def test_a_line_still_being_written_waits(tmp_path):
    tracker = write_run(tmp_path)
    with (tracker.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "tags", "values"')
    run, store = SpooledRun(tracker.folder), FakeStore()
    run.send(store)
    assert store.taken[-1][0] == "finish" and run.pending("fake") == 0


def test_a_run_is_alive_until_it_ends_or_its_process_is_gone(tmp_path):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="train"))
    assert SpooledRun(tracker.folder).alive()
    (tracker.folder / "owner.json").write_text(json.dumps({"pid": os.getpid(), "time_s": 1.0}))
    assert not SpooledRun(tracker.folder).alive()  # the number belongs to a process that began later
    tracker.finish("FINISHED")
    assert not SpooledRun(tracker.folder).alive()


def test_a_killed_run_is_ended_by_the_sender(tmp_path):
    tracker = SpoolTracker(tmp_path / "run")
    tracker.start(RunStart(name="train"))
    run = SpooledRun(tracker.folder)
    assert not run.end_if_abandoned()
    (tracker.folder / "owner.json").write_text(json.dumps({"pid": os.getpid(), "time_s": 1.0}))
    assert run.end_if_abandoned() and not run.end_if_abandoned()
    assert [event.get("status") for _, event in run.events()] == [None, "KILLED"]


def test_waiting_for_the_sender_ends(tmp_path):
    run = SpooledRun(write_run(tmp_path / "spool").folder)
    assert not wait_until_sent(tmp_path / "spool", tmp_path, 0.0)
    run.send(FakeStore(store_uri(tmp_path)))
    assert wait_until_sent(tmp_path / "spool", tmp_path, 0.0)


def test_a_spool_that_cannot_be_written_does_not_stop_training(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tracker = SpoolTracker(tmp_path / "file" / "run")
    tracker.start(RunStart(name="train"))
    tracker.log_metrics({"loss": 1.0}, 0)
    tracker.finish("FINISHED")
    assert len(caplog.records) == 1


def test_one_sender_at_a_time(tmp_path):
    with sender_lock(tmp_path).acquire(blocking=False):
        with pytest.raises(Timeout):
            sender_lock(tmp_path).acquire(blocking=False)
    with sender_lock(tmp_path).acquire(blocking=False):
        pass


def test_a_store_that_is_out_leaves_the_spool_alone(tmp_path, monkeypatch):
    write_run(tmp_path)

    def refuse(root):
        raise Unreachable("http://nowhere: MLflow does not answer")

    monkeypatch.setattr(tracking_send, "_connect", refuse)
    with pytest.raises(Unreachable):
        flush(tmp_path, tmp_path)
    assert spooled_runs(tmp_path)[0].pending("anything") == 7


def run_training(layout, root, config, fail=None):
    """A stage body that finds how often it was entered since its folder was new."""
    with tracked("pretrain_stage1", "mini", config, layout, root, resume=True) as tracker:
        output = layout.pretrain("stage1")
        output.mkdir(parents=True, exist_ok=True)
        (output / f"entered-{len(list(output.iterdir()))}").write_text("")
        if fail:
            raise fail
    return tracker.key


def test_an_interrupted_run_goes_on_under_its_key_and_a_changed_one_starts_over(tmp_path):
    layout = Layout(out=tmp_path / "out", reports=tmp_path / "reports")
    for fail in (KeyboardInterrupt(), OSError("disk full")):
        with pytest.raises(type(fail)):
            run_training(layout, tmp_path, {"steps": 1}, fail)
    key = run_training(layout, tmp_path, {"steps": 1})
    assert [run.key for run in spooled_runs(layout.tracking)] == [key]
    assert len(list(layout.pretrain("stage1").iterdir())) == 3
    statuses = [
        event["status"]
        for _, event in SpooledRun(layout.tracking / key).events()
        if event["kind"] == "finish"
    ]
    assert statuses == ["KILLED", "FAILED", "FINISHED"]
    with pytest.raises(KeyboardInterrupt):
        run_training(layout, tmp_path, {"steps": 2}, KeyboardInterrupt())
    assert run_training(layout, tmp_path, {"steps": 3}) != key
    assert len(list(layout.pretrain("stage1").iterdir())) == 1


def test_a_stage_is_unchanged_only_with_its_config_and_its_output_whole(tmp_path):
    layout = Layout(out=tmp_path / "out", reports=tmp_path / "reports")
    assert not unchanged("pretrain_stage1", {"steps": 1}, layout, tmp_path)
    run_training(layout, tmp_path, {"steps": 1})
    record = read_record(layout, "pretrain_stage1")
    assert record is not None and record.config == {"steps": 1}
    assert unchanged("pretrain_stage1", {"steps": 1}, layout, tmp_path)
    assert not unchanged("pretrain_stage1", {"steps": 2}, layout, tmp_path)
    (layout.pretrain("stage1") / "more").write_text("")
    assert not unchanged("pretrain_stage1", {"steps": 1}, layout, tmp_path)


def test_peak_memory_sees_an_allocation():
    with PeakMemory(period_s=0.01) as before:
        pass
    with PeakMemory(period_s=0.01) as memory:
        block = mmap.mmap(
            -1, 64 << 20
        )  # new pages, where the heap might hand out some that were freed and kept
        block.write(b"1" * len(block))
        memory.sample()
    assert len(block) and memory.peak_bytes > before.peak_bytes + (48 << 20)


@pytest.mark.slow
def test_mlflow_shows_parents_inputs_metrics_and_models(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking_send, "_store", None)
    spool = tmp_path / "spool"
    parent = write_run(spool)
    child = SpoolTracker(spool / (new_run_key("train") + "-z"))
    inputs, parents = {"out/x": "0" * 32}, {"one": parent.key}
    start = RunStart(
        name="stage2", tags={"nava.stage": "s2"}, config={"a": {"b": 1}}, inputs=inputs, parents=parents
    )
    child.start(start)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    child.log_model(model, "mini", {"checkpoint_id": "c"})
    child.log_artifact(str(model / "config.json"), "clips")
    child.log_artifact(str(tmp_path / "gone.png"))
    child.finish("FINISHED")
    assert flush(spool, tmp_path) == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = {run.key: run.sent().run_id for run in spooled_runs(spool)}
    first, second = client.get_run(ids[parent.key]), client.get_run(ids[child.key])
    assert first.info.run_id == second.data.tags["parent.one"]
    assert "mlflow.parentRunId" not in second.data.tags  # what made its inputs is no command above it
    assert first.data.metrics["loss"] != first.data.metrics["loss"]
    assert [metric.step for metric in client.get_metric_history(ids[parent.key], "loss")] == [0, 1, 2, 3]
    assert second.data.params == {"a.b": "1"} and second.info.status == "FINISHED"
    assert second.inputs is not None and second.inputs.dataset_inputs[0].dataset.name == "out/x"
    assert "nava.missing_artifact.gone.png" in second.data.tags
    assert {item.path for item in client.list_artifacts(ids[child.key])} == {"clips", "config.json"}
    assert len(client.search_logged_models([second.info.experiment_id])) == 1
    assert Path(tmp_path / "mlartifacts").is_dir()


def test_a_sender_that_gets_on_is_waited_for(tmp_path, monkeypatch):
    left = iter([9, 5, 2, 2])
    waits = []
    monkeypatch.setattr(
        tracking_send, "spooled_runs", lambda spool: [SimpleNamespace(pending=lambda uri: next(left))]
    )
    monkeypatch.setattr(tracking_send, "wait_until_sent", lambda *given: waits.append(given))
    tracking_send.wait_while_it_sends(tmp_path, tmp_path, 60.0)
    assert len(waits) == 3  # and not once more without progress
