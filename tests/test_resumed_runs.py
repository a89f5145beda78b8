"""A run that goes on keeps its row in MLflow, which says what has changed: code, inputs, experiment."""

import re
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_world import model_folder_of, open_store, run_of, send, send_all_again, started

from experiments.layout import Layout
from experiments.runs import sender
from experiments.runs.lineage import show, trace
from experiments.runs.local_store import MADE_AS, follow_move
from experiments.runs.model_names import model_tags
from experiments.runs.resumed import changed_tags, others_before, values_of
from experiments.runs.spool import SpooledRun
from experiments.runs.store_uri import connection_uri
from experiments.runs.tracker import RunStart, SpoolTracker

values = st.sampled_from(["a", "b", "c"])
A, B = "A" * 40, "B" * 40


@pytest.fixture
def store(tmp_path, monkeypatch, empty_database):
    return open_store(tmp_path, monkeypatch, empty_database)


def start_of(commit: str, dirty: bool, **inputs: str) -> dict:
    tags = {"nava.stage": "train", "mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}
    return {"tags": tags, "inputs": {name.replace("_", "/"): md5 for name, md5 in inputs.items()}}


def again(tracker: SpoolTracker, **start) -> SpoolTracker:
    """As the next process goes on with the run."""
    resumed = SpoolTracker(tracker.folder)
    resumed.start(RunStart(name="train", **start))
    return resumed


commits, inputs = {"git.commit": values}, {"input.x": values, "input.y": values}


@given(st.lists(st.fixed_dictionaries(commits, optional=inputs), min_size=1))
def test_each_value_of_a_resumed_run_is_said_in_its_order(starts):
    stored, expected = dict(starts[0]), {name: [value] for name, value in starts[0].items()}
    for tags in starts[1:]:
        changes = changed_tags(stored, tags)
        broken_off = {**stored, **changes.said}
        assert changed_tags(broken_off, tags) == changes
        for name in ("git.commit", "input.x", "input.y"):
            before, now = expected.setdefault(name, ["none"])[-1], tags.get(name, "none")
            if now != before:
                expected[name].append(now)
        stored = {name: value for name, value in {**broken_off, **tags}.items() if name not in changes.gone}
        assert changed_tags(stored, tags) == ({}, [])
    said = {name: values_of(value) for name, value in stored.items() if name.startswith("nava.changed.")}
    changed = {name: values for name, values in expected.items() if len(values) > 1}
    assert said == {f"nava.changed.{name}": values for name, values in changed.items()}


@pytest.mark.parametrize(
    ("said", "before"),
    [("", []), ("a -> b", ["a"]), ("a -> b -> c -> b", ["a", "c"]), ("a -> b -> a", ["b"])],
)
def test_the_commits_before_the_last_one(said, before):
    assert others_before(values_of(said)) == before


def test_a_run_that_goes_on_with_other_code_says_so_everywhere(tmp_path, store, capsys):
    tracker = started("train", **start_of(A, dirty=False, pretrain_model="1" * 32, old="2" * 32))
    tracker.finish("KILLED")
    assert send() == 0
    resumed = again(tracker, **start_of(B, dirty=True, pretrain_model="3" * 32, new="4" * 32))
    folder = tmp_path / "model"
    model_folder_of(folder, b"weights")
    resumed.log_model(folder, "m", model_tags(folder), "nava-mini", "pretrained")
    resumed.finish("FINISHED")
    assert send() == 0
    tags = run_of(store, tracker).data.tags
    assert (tags["mlflow.source.git.commit"], tags["git.dirty"]) == (B, "true")
    assert {name: value for name, value in tags.items() if name.startswith("input.")} == {
        "input.pretrain/model": "3" * 32,
        "input.new": "4" * 32,
    }
    changed = {name.removeprefix("nava.changed."): value for name, value in tags.items() if "changed" in name}
    assert changed == {
        "git.commit": f"{A} -> {B}",
        "git.dirty": "false -> true",
        "input.pretrain/model": f"{'1' * 32} -> {'3' * 32}",
        "input.new": f"none -> {'4' * 32}",
        "input.old": f"{'2' * 32} -> none",
    }
    # sent again, as without sent.json, and by a try whose answer was lost
    assert send_all_again() == 0 and run_of(store, tracker).data.tags == tags
    [version] = store.search_model_versions("name = 'nava-mini'")
    assert (version.tags["git.commit"], version.tags["git.commits_before"]) == (B, A)
    assert f"commit {B[:12]} with uncommitted changes, begun with commit {A[:12]}" in version.description
    here = trace(tracker.key, Layout(), tmp_path)["runs"][0]
    for path in (tracker.folder / "events.jsonl", *tracker.folder.glob("*.json")):
        path.unlink()
    elsewhere = trace(tracker.key, Layout(), tmp_path)
    for facts in (here, elsewhere["runs"][0]):
        assert (facts["git_commit"], facts["git_dirty"], facts["commits_before"]) == (B, True, [A])
        assert facts["inputs"] == {"pretrain/model": "3" * 32, "new": "4" * 32}
    show(elsewhere)
    assert f"commit {B[:10]} + changes (begun with {A[:10]})" in capsys.readouterr().out


def test_a_run_stays_one_where_its_experiment_is_renamed(tmp_path, store):
    tracker = started("train")
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish("KILLED")
    assert send() == 0
    experiment = run_of(store, tracker).info.experiment_id
    store.rename_experiment(experiment, "voice team")
    sender._store = None  # the sender of the next command
    again(tracker).log_metrics({"loss": 0.5}, 2)
    other = started("other")
    assert send() == 0
    run_id = SpooledRun(tracker.folder).sent().run_id
    assert [(point.step, point.value) for point in store.get_metric_history(run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
    ]
    assert run_of(store, other).info.experiment_id == experiment
    assert store.get_experiment_by_name("nava") is None
    # whoever makes an experiment of the old name again has new runs there, and old ones where they are
    fresh = store.create_experiment("nava")
    sender._store = None
    again(tracker).finish("FINISHED")
    third = started("third")
    assert send() == 0 and run_of(store, tracker).info.status == "FINISHED"
    assert SpooledRun(tracker.folder).sent().run_id == run_id
    assert run_of(store, third).info.experiment_id == fresh
    assert store.get_experiment(fresh).tags[MADE_AS] == "nava"


def test_a_renamed_experiment_moves_with_its_checkout(tmp_path, store):
    tracker = started("train")
    assert send() == 0
    store.rename_experiment(run_of(store, tracker).info.experiment_id, "voice team")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = 'file:///gone/mlartifacts' WHERE name != 'Default'"
        )
    assert "moved or copied" in follow_move(connection_uri(tmp_path), tmp_path, "nava")


def test_a_run_that_was_deleted_is_not_made_again_as_its_last_part(tmp_path, store):
    tracker = started("train")
    tracker.finish("KILLED")
    assert send() == 0
    run_id = SpooledRun(tracker.folder).sent().run_id
    store.delete_run(run_id)
    again(tracker).finish("FINISHED")
    assert send() == 2
    assert re.search("was deleted in MLflow; ", SpooledRun(tracker.folder).sent().problem)
    store.restore_run(run_id)
    assert send() == 0 and store.get_run(run_id).info.status == "FINISHED"
