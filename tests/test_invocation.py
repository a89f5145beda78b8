"""One parent run for each command, found by its stages, described, and first in MLflow's list."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.runs import invocation as invocations
from experiments.runs import run as runs
from experiments.runs import sender as tracking_send
from experiments.runs.invocation import (
    INVOCATION,
    add_curves,
    bring_up_to_date,
    current,
    invocation,
    publish,
)
from experiments.runs.mlflow_view import MOST_COLUMNS, with_columns, with_links
from experiments.runs.run import single_run, tracked
from experiments.runs.sender import flush
from experiments.runs.spool import SpooledRun, children, linked_runs, spooled_runs
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key
from experiments.stages import add_to_invocation

names = st.text("abcdefghij_/ ", min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No sender, no other command above, and a store of its own."""
    monkeypatch.setattr(runs, "ensure_sender", lambda spool, root: None)
    for name in (INVOCATION, "DVC_STAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking_send, "_store", None)


class Found:
    numbers = {"wer_judge": 0.1, "sync_judge": 1.0}
    text = "| metric |\n| --- |\n| words |"
    columns = ("wer_judge", "sync_judge")


def layout_in(folder: Path) -> Layout:
    return Layout(out=folder / "out", reports=folder / "reports")


def stage(name: str, layout: Layout, root: Path, fails: bool = False) -> SpoolTracker:
    with tracked(name, "mini", {"a": 1}, layout, root, resume=False) as tracker:
        layout.output_of(name).mkdir(parents=True, exist_ok=True)
        (layout.output_of(name) / "made.txt").write_text(name)
        if fails:
            raise ValueError("broken")
    return tracker


def notes(tracker: SpoolTracker) -> list[str]:
    events = [event for _, event in SpooledRun(tracker.folder).events()]
    return [event["text"] for event in events if event["kind"] == "note"]


def test_all_that_a_command_runs_is_below_it(tmp_path):
    layout = layout_in(tmp_path)
    with invocation("demo mini", layout, tmp_path) as above:
        stage("corpus", layout, tmp_path)
        with invocation("pretrain mini", layout, tmp_path) as inner:
            assert inner.key == above.key
        with single_run("score", {}, {}, layout, tmp_path):
            pass
    stage("curate", layout, tmp_path)
    spool = layout.tracking
    below = [SpooledRun(run.folder).start_event()["name"] for run in children(spool, above.key)]
    assert below == ["corpus", "score"]
    assert SpooledRun(above.folder).last_end()[0] == "FINISHED"
    assert SpooledRun(above.folder).start_event()["name"].startswith("demo mini 20")
    [alone] = [run for run in spooled_runs(spool) if run.key.split("-")[3] == "curate"]
    assert alone.start_event()["name"].startswith("curate mini 20")
    assert INVOCATION not in os.environ and current(layout, tmp_path) is None


def test_a_stage_that_fails_fails_the_command_and_is_described(tmp_path):
    layout = layout_in(tmp_path)
    with pytest.raises(ValueError, match="broken"), invocation("demo mini", layout, tmp_path) as above:
        stage("corpus", layout, tmp_path)
        stage("curate", layout, tmp_path, fails=True)
    assert SpooledRun(above.folder).last_end()[0] == "FAILED"
    assert "[curate](run:" in notes(above)[-1] and "| failed |" in notes(above)[-1]


def killed(name: str, layout: Layout, root: Path) -> SpoolTracker:
    """A stage that is left as a kill leaves it."""
    with (
        pytest.raises(KeyboardInterrupt),
        tracked(name, "mini", {"a": 1}, layout, root, resume=True, given={}),
    ):
        layout.output_of(name).mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt
    return SpoolTracker(layout.tracking / runs.running_key(name, layout))


def gone_on(name: str, layout: Layout, root: Path) -> SpoolTracker:
    with tracked(name, "mini", {"a": 1}, layout, root, resume=True, given={}) as tracker:
        (layout.output_of(name) / "made.txt").write_text(name)
    return tracker


def test_a_stage_that_went_on_is_below_the_command_that_finished_it(tmp_path):
    layout = layout_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), invocation("pretrain mini", layout, tmp_path) as first:
        stage("corpus", layout, tmp_path)
        began = killed("pretrain_stage1", layout, tmp_path)
        raise KeyboardInterrupt
    events = [event for _, event in SpooledRun(began.folder).events()]
    lines = [json.dumps({**event, "time_ms": event["time_ms"] - 7_200_000}) + "\n" for event in events]
    (began.folder / "events.jsonl").write_text("".join(lines))  # two hours ago
    with invocation("pretrain mini", layout, tmp_path) as second:
        assert gone_on("pretrain_stage1", layout, tmp_path).key == began.key
    assert [run.key for run in children(layout.tracking, second.key)] == [began.key]
    assert began.key not in {run.key for run in children(layout.tracking, first.key)}
    assert f"[pretrain_stage1](run:{began.key}) | finished" in notes(second)[-1]
    [line] = invocations._stages(second, layout)[:1]
    assert line.seconds is not None and line.seconds < 3600  # from where it went on
    ends = [SpooledRun(run.folder).last_end()[0] for run in (first, second)]
    assert ends == ["KILLED", "FINISHED"]


def test_what_dvc_ran_ends_as_its_stages_ended_in_it(tmp_path, monkeypatch):
    """Also where the run that DVC was killed with has gone on below another one since."""
    layout, spool = layout_in(tmp_path), layout_in(tmp_path).tracking
    above = []
    for number, run in enumerate((killed, gone_on)):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        above.append(SpoolTracker(spool / f"{number}-dvc-repro"))
        above[-1].start(RunStart(name="dvc-repro"), process.pid)
        monkeypatch.setenv(INVOCATION, str(above[-1].folder.resolve()))
        stage(("corpus", "curate")[number], layout, tmp_path)
        run("pretrain_stage1", layout, tmp_path)
        process.kill()
        process.wait()
    for tracker, status in zip(above, ("KILLED", "FINISHED"), strict=True):
        assert SpooledRun(tracker.folder).end_if_abandoned()
        assert SpooledRun(tracker.folder).last_end()[0] == status


def test_stages_that_were_kept_are_linked(tmp_path):
    layout = layout_in(tmp_path)
    kept = stage("corpus", layout, tmp_path)
    with invocation("demo mini", layout, tmp_path) as above:
        stage("curate", layout, tmp_path)
        stage("codec", layout, tmp_path)
    text = notes(above)[-1]
    assert f"[corpus](run:{kept.key}) | kept" in text
    assert linked_runs(text) == {kept.key, *(run.key for run in children(layout.tracking, above.key))}
    order = [text.index(f"[{name}]") for name in ("corpus", "curate", "codec")]
    assert order == sorted(order)


def test_a_single_verb_does_not_list_the_pipeline(tmp_path):
    layout = layout_in(tmp_path)
    stage("corpus", layout, tmp_path)
    with invocation("align mini nft", layout, tmp_path) as above:
        stage("align", layout, tmp_path)
    assert "corpus" not in notes(above)[-1]


def test_the_stages_of_pretraining_are_one_curve(tmp_path):
    parent, points = SpoolTracker(tmp_path / "spool" / "p"), {}
    for before, steps, key in ((0, 3, "a"), (3, 2, "b")):
        child = SpoolTracker(tmp_path / "spool" / key)
        for step in range(1, steps + 1):
            child.log_metrics({"loss_video": step + 10.0 * before, "grad_norm": 1.0}, step)
        add_curves(child, parent, "pretrain", before)
        add_curves(child, parent, "pretrain", before)  # a stage that ended twice
    for _, event in SpooledRun(parent.folder).events():
        for name, value in event["values"].items():
            assert (name, event["step"]) not in points
            points[name, event["step"]] = value
    assert points == {("pretrain/loss_video", n): n + (27.0 if n > 3 else 0.0) for n in range(1, 6)}


def test_curves_of_kept_stages_stand_before_those_of_trained_ones(tmp_path):
    layout = layout_in(tmp_path)
    job = StageJob(recipe=load_recipe("mini"), layout=layout, root=tmp_path)
    first = job.recipe.pretrain.stages["stage1"].steps
    with tracked("pretrain_stage1", "mini", {}, layout, tmp_path, resume=False) as kept:
        layout.output_of("pretrain_stage1").mkdir(parents=True)
        kept.log_metrics({"loss_video": 3.0}, 5)
    with invocation("pretrain mini", layout, tmp_path) as above:
        with tracked("pretrain_stage2", "mini", {}, layout, tmp_path, resume=False) as trained:
            layout.output_of("pretrain_stage2").mkdir(parents=True)
            trained.log_metrics({"loss_video": 2.0}, 5)
            add_to_invocation("pretrain_stage2", job, trained)
    events = [event for _, event in SpooledRun(above.folder).events() if event["kind"] == "metrics"]
    assert [(event["step"], event["values"]) for event in events] == [
        (5, {"pretrain/loss_video": 3.0}),
        (first + 5, {"pretrain/loss_video": 2.0}),
    ]


def test_an_unwritable_description_fails_no_work(tmp_path, caplog):
    layout = layout_in(tmp_path)
    with invocation("demo mini", layout, tmp_path) as above:
        (above.folder / invocations.RESULTS).write_text("{")
        bring_up_to_date(above, layout)
    assert "is not described" in caplog.text
    assert SpooledRun(above.folder).last_end()[0] == "FINISHED"


def test_mlflow_nests_links_and_shows_the_columns(tmp_path):
    layout = layout_in(tmp_path)
    with invocation("demo mini", layout, tmp_path) as above:
        stage("corpus", layout, tmp_path)
        publish(above, Found())
    assert flush(layout.tracking, tmp_path) == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    [child] = children(layout.tracking, above.key)
    top = client.get_run(SpooledRun(above.folder).sent().run_id)
    below = client.get_run(child.sent().run_id)
    assert below.data.tags["mlflow.parentRunId"] == top.info.run_id
    assert "mlflow.parentRunId" not in top.data.tags and "nava.announced" not in below.data.tags
    experiment = client.get_experiment_by_name("nava")
    assert experiment is not None
    link = f"(#/experiments/{experiment.experiment_id}/runs/{below.info.run_id})"
    assert f"[corpus]{link}" in top.data.tags["mlflow.note.content"]
    assert Found.text in top.data.tags["mlflow.note.content"]
    view = json.loads(experiment.tags["mlflow.sharedViewState.nava"])
    assert view["selectedColumns"][:2] == ["metrics.`wer_judge`", "metrics.`sync_judge`"]
    assert top.data.metrics == Found.numbers
    # sent again from the start, nothing is doubled
    for run in spooled_runs(layout.tracking):
        (run.folder / "sent.json").unlink()
    assert flush(layout.tracking, tmp_path) == 0
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_resumed_run_belongs_to_the_command_that_ended_it(tmp_path):
    spool = tmp_path / "out" / "tracking"
    child = SpoolTracker(spool / new_run_key("pretrain_stage1"))
    keys = []
    for attempt in range(2):  # the run's key is older than the second command's
        parent = SpoolTracker(spool / new_run_key("demo"))
        parent.start(RunStart(f"demo {attempt}"))
        child.start(RunStart("pretrain_stage1", invocation=parent.key))
        child.finish("KILLED")
        keys.append(parent.key)
        assert flush(spool, tmp_path) == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(SpooledRun(child.folder).sent().run_id)
    assert run.data.tags["mlflow.parentRunId"] == SpooledRun(spool / keys[1]).sent().run_id


@given(view=st.none() | st.lists(names, max_size=4), added=st.lists(names, max_size=15))
def test_columns_are_kept_and_added_once(view, added):
    before = None if view is None else with_columns(None, view)
    after = with_columns(before, added)
    columns = json.loads(after)["selectedColumns"]
    assert len(columns) == len(set(columns)) <= MOST_COLUMNS + 1
    if before:
        had = json.loads(before)["selectedColumns"][:-1]
        assert columns[: len(had)] == had
    assert with_columns(after, added) == after


@given(text=st.text(max_size=30), key=st.from_regex(r"[\w.-]{1,20}", fullmatch=True))
def test_only_links_to_runs_change(text, key):
    described = f"{text} [x](run:{key}) [y](https://z)"
    assert with_links(described, "1", {key: "ab"}).endswith("[x](#/experiments/1/runs/ab) [y](https://z)")
    assert with_links(described, "1", {}).endswith("[x](#/experiments/1/runs) [y](https://z)")


STAGE = """
import sys
from pathlib import Path
from experiments.layout import Layout
from experiments.runs import run
run.ensure_sender = lambda spool, root: None
with run.single_run(sys.argv[1], {}, {}, Layout(), Path()):
    Path(sys.argv[1] + ".txt").write_text("made")
"""


def test_what_dvc_runs_is_below_one_run_that_ends_with_it(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    stages = "".join(
        f"  {name}:\n    cmd: {sys.executable} stage.py {name}\n    outs: [{name}.txt]\n"
        + (f"    deps: [{before}.txt]\n" if before else "")
        for name, before in (("one", ""), ("two", "one"))
    )
    (tmp_path / "dvc.yaml").write_text(textwrap.dedent(f"stages:\n{stages}"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def dvc(*words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
        )

    dvc("init", "--no-scm", "-q")
    dvc("repro")
    spool = tmp_path / "out" / "tracking"
    by_name = {run.key.split("-", 3)[3].rsplit("-", 1)[0]: run for run in spooled_runs(spool)}
    above = by_name.pop("dvc-repro")
    assert {name: run.start_event()["invocation"] for name, run in by_name.items()} == {
        "one": above.key,
        "two": above.key,
    }
    assert above.last_end() == ("", 0)
    assert above.end_if_abandoned() and above.last_end()[0] == "FINISHED"
    time.sleep(0.01)
    (tmp_path / "one.txt").unlink()
    dvc("repro", "-f")
    assert len([run for run in spooled_runs(spool) if "dvc-repro" in run.key]) == 2
