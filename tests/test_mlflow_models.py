"""Logged models, registered versions, aliases and metrics of models in a real MLflow, also sent twice or cut
short."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_world import (
    logged_models,
    model_folder_of,
    open_store,
    run_of,
    send,
    send_all_again,
    started,
)

from experiments.runs.model_names import (
    adapter_tags,
    codec_tags,
    digest_of_model,
    model_tags,
    registered_name,
)
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import SpoolTracker

NAME = "nava-mini"


@pytest.fixture
def store(tmp_path, monkeypatch, empty_database):
    return open_store(tmp_path, monkeypatch, empty_database)


def train(folder: str, weights: bytes, registered: str = NAME, alias: str = "pretrained", **options) -> str:
    """A finished run that logs one model; returns its checkpoint id."""
    checkpoint = model_folder_of(Path(folder), weights)
    tags = {"nava.stage": "pretrain_stage3", "nava.recipe": "mini", "mlflow.source.git.commit": "a" * 40}
    tracker = started(tags=tags, parents={"pretrain_stage2": "20261129-000000-000000-x-0"})
    tracker.log_model(Path(folder), "mini-stage3", model_tags(Path(folder)), registered, alias, **options)
    tracker.finish("FINISHED")
    return checkpoint


def versions(client, name: str = NAME) -> dict[str, str]:
    """Version -> checkpoint id."""
    found = client.search_model_versions(f"name = '{name}'")
    return {version.version: version.tags.get("nava.checkpoint_id", "") for version in found}


def aliases(client, name: str = NAME) -> dict[str, str]:
    """Alias -> checkpoint id."""
    numbers = client.get_registered_model(name).aliases
    return {alias: versions(client, name)[number] for alias, number in numbers.items()}


def test_a_version_says_what_it_is_and_stands_on_the_page_of_its_model(store):
    checkpoint = train("m", b"one")
    assert send() == 0
    (version,) = store.search_model_versions(f"name = '{NAME}'")
    assert version.tags["nava.stage"] == "pretrain_stage3" and version.tags["git.commit"] == "a" * 40
    assert version.tags["nava.parents"] == "20261129-000000-000000-x-0" and version.tags["nava.run"]
    assert checkpoint in version.description and "recipe mini" in version.description
    (model,) = logged_models(store)
    assert version.tags["nava.model_id"] == model.model_id and version.run_id == model.source_run_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": 1}]
    run = store.get_run(model.source_run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert aliases(store) == {"pretrained": checkpoint}


def test_everything_sent_twice_gives_one_version_and_one_alias(store):
    first, second = train("a", b"one"), train("b", b"two")
    for again in (send, send_all_again, send_all_again):
        assert again() == 0
        assert versions(store) == {1: first, 2: second}
        assert aliases(store) == {"pretrained": second}
        assert len(logged_models(store)) == 2


@pytest.mark.parametrize(
    "call",
    [
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "log_outputs",
        "create_registered_model",
        "create_model_version",
        "set_logged_model_tags",
        "set_registered_model_alias",
        "set_registered_model_tag",
    ],
)
@pytest.mark.parametrize("arrives", [True, False])
def test_a_call_whose_answer_is_lost_doubles_nothing(store, monkeypatch, call, arrives):
    from mlflow import MlflowClient

    real = getattr(MlflowClient, call)
    calls = []

    def cut(self, *arguments, **options):
        calls.append(call)
        if len(calls) == 1:
            if arrives:
                real(self, *arguments, **options)
            raise ConnectionError("gone")
        return real(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, call, cut)
    checkpoint = train("a", b"one")
    assert send() == 1 and calls
    assert send() == 0
    assert versions(store) == {1: checkpoint} and aliases(store) == {"pretrained": checkpoint}
    assert [str(model.status) for model in logged_models(store)] == ["READY"]


def test_the_same_checkpoint_made_again_is_the_same_version(store):
    first, other = train("a", b"one"), train("b", b"two")
    assert train("c", b"one") == first
    send()
    assert versions(store) == {1: first, 2: other}
    assert aliases(store) == {"pretrained": first}  # made last, though its number is lower


def test_an_alias_follows_the_time_of_runs_not_the_order_of_sending(store, monkeypatch):
    from mlflow import MlflowClient

    real = MlflowClient.log_model_artifacts
    monkeypatch.setattr(
        MlflowClient, "log_model_artifacts", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
    )
    train("a", b"one")
    assert send() == 1
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", real)
    late = train("b", b"two")
    # the newer run first, as another machine's sender might
    older, newer = sorted(Path("out/tracking").glob("2*"))
    hidden = older.rename(older.with_name(f".{older.name}"))
    send()
    hidden.rename(older)
    assert send() == 0 and newer.is_dir()
    assert len(versions(store)) == 2 and aliases(store) == {"pretrained": late}


def test_an_alias_that_a_wrong_clock_holds_says_so_and_how_to_free_it(store, monkeypatch):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 365 * 86400)
    first = train("a", b"one")
    monkeypatch.setattr(time, "time", real)
    train("b", b"two")
    assert send() == 0 and aliases(store) == {"pretrained": first}
    runs = [run_of(store, SpoolTracker(path)) for path in sorted(Path("out/tracking").glob("2*"))]
    said = [run.data.tags.get("nava.alias.pretrained", "") for run in runs]
    ahead = next(filter(None, said))
    assert said.count("") == 1 and "a later run has moved it, at 20" in ahead
    [tag] = [tag for tag in store.get_registered_model("nava-mini").tags if tag.endswith(".pretrained")]
    assert f"which lies ahead: delete the tag {tag} of nava-mini" in ahead
    store.delete_registered_model_tag("nava-mini", tag)
    third = train("c", b"three")
    assert send() == 0 and aliases(store) == {"pretrained": third}


def test_earlier_stages_are_logged_and_not_registered(store):
    train("a", b"one", registered="", alias="")
    send()
    assert len(logged_models(store)) == 1 and store.search_registered_models() == []


def test_an_alignment_is_a_version_of_what_it_started_from(store):
    ours = train("a", b"one")
    theirs = train("b", b"two", registered="nava-theirs")
    of_ours = train("c", b"three", registered=NAME, alias="aligned", version_of=ours)
    of_theirs = train("d", b"four", registered="", alias="aligned", version_of=theirs)
    train("e", b"five", registered="", alias="aligned", version_of="0123456789abcdef")
    send()
    assert aliases(store) == {"pretrained": ours, "aligned": of_ours}
    assert aliases(store, "nava-theirs") == {"pretrained": theirs, "aligned": of_theirs}
    experiment = store.get_experiment_by_name("nava")
    tags = [run.data.tags for run in store.search_runs([experiment.experiment_id])]
    [why] = [found["nava.not_registered"] for found in tags if "nava.not_registered" in found]
    assert "0123456789abcdef, which is no version" in why


def test_metrics_of_an_evaluation_are_on_the_models_pages_once(store):
    before, after = train("a", b"one"), train("b", b"two", alias="aligned")
    tracker = started("evaluate")
    tracker.log_model_metrics(before, {"evaluated/wer": 0.3, "evaluated/wer/n": 20}, 0)
    tracker.log_model_metrics(after, {"evaluated/wer": 0.2, "evaluated/wer/n": 20}, 1)
    tracker.log_model_metrics("feedfeedfeedfeed", {"evaluated/wer": 9.0}, 1)
    tracker.move_alias(NAME, "best", after)
    tracker.finish("FINISHED")
    for again in (send, send_all_again):
        assert again() == 0
        found = {
            model.tags["nava.checkpoint_id"]: {metric.key: metric.value for metric in model.metrics}
            for model in logged_models(store)
        }
        assert found == {
            before: {"evaluated/wer": 0.3, "evaluated/wer/n": 20},
            after: {"evaluated/wer": 0.2, "evaluated/wer/n": 20},
        }
        assert [len(model.metrics) for model in logged_models(store)] == [2, 2]
        run = run_of(store, tracker)
        points = store.get_metric_history(run.info.run_id, "evaluated/wer")
        assert sorted((point.step, point.value) for point in points) == [(0, 0.3), (1, 0.2)]
        assert len(run.inputs.model_inputs) == 2
        assert "nava.unknown_model.feedfeedfeedfeed" in run.data.tags
        assert aliases(store)["best"] == after and run.data.tags["nava.alias.best"] == f"{NAME} version 2"


def test_best_waits_for_the_files_of_its_model_and_stays_where_there_is_no_version(store, monkeypatch):
    from mlflow import MlflowClient

    real = MlflowClient.log_model_artifacts
    monkeypatch.setattr(
        MlflowClient, "log_model_artifacts", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
    )
    checkpoint = train("a", b"one")
    evaluation, other = started("evaluate"), started("evaluate")
    evaluation.move_alias(NAME, "best", checkpoint)
    other.move_alias(NAME, "best", "feedfeedfeedfeed")
    for tracker in (evaluation, other):
        tracker.finish("FINISHED")
    assert send() == 2
    assert "no version of nava-mini" in run_of(store, other).data.tags["nava.alias.best"]
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", real)
    assert send() == 0
    assert aliases(store) == {"pretrained": checkpoint, "best": checkpoint}


def test_a_run_names_the_models_it_reads(store):
    checkpoint = train("a", b"one")
    codec = Path("codec")
    codec.mkdir()
    (codec / "config.json").write_text(json.dumps({"kind": "linear", "codec_id": "c0dec"}))
    maker = started("codec")
    maker.log_model(codec, "codec", codec_tags(codec), "nava-mini-codec")
    maker.finish("FINISHED")
    from experiments.runs.datasets import about_inputs
    from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key

    read = {"a": f"checkpoint:{checkpoint}", "codec": "0" * 32, "gone": "checkpoint:feedfeedfeedfeed"}
    tracker = SpoolTracker(Path("out/tracking") / new_run_key("generate"), about=about_inputs(read, Path()))
    tracker.start(RunStart(name="generate", inputs=read))
    tracker.finish("FINISHED")
    for again in (send, send_all_again):
        assert again() == 0
        inputs = run_of(store, tracker).inputs
        ids = {model.model_id: model.name for model in logged_models(store)}
        assert sorted(ids[entry.model_id] for entry in inputs.model_inputs) == ["codec", "mini-stage3"]
        assert inputs.dataset_inputs == []
    (version,) = store.search_model_versions("name = 'nava-mini-codec'")
    assert version.tags["nava.codec_id"] == "c0dec"


def test_a_spool_of_an_earlier_version_can_be_sent(store):
    checkpoint = model_folder_of(Path("m"), b"one")
    tracker = started(inputs={"out/x": "0" * 32})
    tags = {"nava.checkpoint_id": checkpoint}
    tracker._append("model", path=str(Path("m").resolve()), name="mini", tags=tags)
    tracker.finish("FINISHED")
    assert send() == 0
    assert len(logged_models(store)) == 1 and store.search_registered_models() == []


def test_a_model_that_was_replaced_before_it_was_sent_is_no_version(store, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.setattr("os.link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "cross-device link")))
    real, before = MlflowClient.log_model_artifacts, model_folder_of(Path("m"), b"one")
    first, page = started(), Path("page.png")
    first.log_model(Path("m"), "mini-stage3", model_tags(Path("m")), NAME, "pretrained")
    first.move_alias(NAME, "best", before)
    for content in (b"of the first", b"of the second"):
        page.write_bytes(content)
        first.log_artifact(str(page), "pictures")
        first.log_artifact(str(page))
    first.finish("FINISHED")

    def replaced(self, model_id, local_dir):
        model_folder_of(Path("m"), b"two")
        real(self, model_id, local_dir)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", replaced)  # while it is stored
    assert send() == 2 and "is not stored whole yet" in SpooledRun(first.folder).sent().problem
    assert [str(model.status) for model in logged_models(store)] == ["PENDING"]
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", real)
    after = train("m", b"two")
    assert send() == 0
    assert list(versions(store).values()) == [after] and aliases(store) == {"pretrained": after}
    tags = run_of(store, first).data.tags
    said = f"not stored: checkpoint {after} in place of checkpoint {before}"
    assert tags["nava.changed_model.mini-stage3"] == said and said in capsys.readouterr().out
    assert "no version of nava-mini" in tags["nava.alias.best"]
    # of files that a run logs again the newest is stored
    assert not [tag for tag in tags if tag.startswith("nava.changed_artifact")]
    assert {str(model.status) for model in logged_models(store)} == {"FAILED", "READY"}
    stored = store.download_artifacts(run_of(store, first).info.run_id, "page.png")
    assert Path(stored).read_bytes() == b"of the second"


def test_an_adapter_is_not_taken_for_the_model_it_was_merged_into(tmp_path):
    (tmp_path / "adapter.json").write_text(json.dumps({"adapter_id": "ad", "base_id": "ba"}))
    tags = adapter_tags(tmp_path, "merged")
    assert "nava.checkpoint_id" not in tags and tags["nava.adapter_id"] == "ad"
    assert digest_of_model(tmp_path) == "adapter:ad"


@given(st.text(max_size=300))
def test_every_recipe_has_a_name_that_mlflow_takes_and_that_begins_with_nava_once(recipe):
    from mlflow.utils.validation import _validate_model_name

    name = registered_name(recipe)
    _validate_model_name(name)
    assert name == "nava" or name.startswith("nava-")
    assert registered_name(name) == name and "'" not in name and len(name) <= 200


def test_names_of_the_shipped_recipes():
    assert [registered_name(name) for name in ("mini", "nava_6b")] == ["nava-mini", "nava-6b"]
