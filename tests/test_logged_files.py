"""What a run logs is what a store gets, however late it is sent and whatever another training replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_world import model_folder_of

from experiments.runs import logged_files
from experiments.runs.logged_files import KEPT, changed, keep, located, release
from experiments.runs.model_names import model_tags, other_model
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import RunStart, SpoolTracker


class Store:
    """Keeps the content of what it gets; of what is no longer what was logged, nothing."""

    def __init__(self, uri: str = "one") -> None:
        self.uri, self.files, self.refused, self.down = uri, {}, {}, False

    def start(self, *_: object) -> str:
        return "id"

    def finish(self, *_: object) -> None: ...

    def artifact(self, run_id: str, event: Mapping[str, Any]) -> None:
        self._take(event, Path(event["path"]).name)

    def model(self, run_id: str, event: Mapping[str, Any]) -> None:
        self._take(event, event["name"])

    def _take(self, event: Mapping[str, Any], name: str) -> None:
        if self.down:
            raise OSError("no space left")
        if event["changed"]:
            self.refused[name] = event["changed"]
            return
        content = Path(event["content"])
        self.files[name] = next(_contents(content))


def _contents(path: Path) -> Iterator[bytes]:
    yield (path / "ema.safetensors").read_bytes() if path.is_dir() else path.read_bytes()


@pytest.fixture
def tracker(tmp_path) -> SpoolTracker:
    found = SpoolTracker(tmp_path / "out/tracking/run")
    found.start(RunStart(name="train"))
    return found


def send(tracker: SpoolTracker, store: Store) -> Store:
    SpooledRun(tracker.folder).send(store)  # type: ignore[arg-type]
    return store


def kept(tracker: SpoolTracker) -> list[Path]:
    return list((tracker.folder / KEPT).glob("*"))


def log_all(tracker: SpoolTracker, folder: Path, content: bytes) -> None:
    """A model, a clip, a page and metrics."""
    model_folder_of(folder / "model", content)
    tracker.log_model(folder / "model", "mini", model_tags(folder / "model"))
    for name in ("a.mp4", "page.html", "metrics.jsonl"):
        (folder / name).write_bytes(content)
        tracker.log_artifact(str(folder / name))


ALL = {"mini", "a.mp4", "page.html", "metrics.jsonl"}


def no_links(*_: object, **__: object) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_what_another_training_replaces_is_sent_as_it_was_logged(tmp_path, tracker):
    folder = tmp_path / "out/stage"
    log_all(tracker, folder, b"of A")
    tracker.finish("FINISHED")
    shutil.move(folder, tmp_path / "out/.trash")
    log_all(SpoolTracker(tmp_path / "out/tracking/other"), folder, b"of B")
    store = send(tracker, Store())
    assert store.files == dict.fromkeys(ALL, b"of A") and not store.refused


def test_pages_and_rows_that_are_written_in_place_are_sent_as_they_were(tmp_path, tracker):
    log_all(tracker, tmp_path / "out", b"row 1\n")
    with (tmp_path / "out/metrics.jsonl").open("ab") as file:
        file.write(b"row 2\n")
    (tmp_path / "out/page.html").write_bytes(b"another")
    assert send(tracker, Store()).files == dict.fromkeys(ALL, b"row 1\n")


def test_a_clip_costs_no_copy_and_one_written_in_place_is_told(tmp_path, tracker):
    log_all(tracker, tmp_path / "out", b"of A")
    [clip] = [path for path in (tracker.folder / KEPT).rglob("a.mp4")]
    assert clip.samefile(tmp_path / "out/a.mp4")
    assert (tmp_path / "out/model/ema.safetensors").stat().st_nlink == 2
    (tmp_path / "out/a.mp4").write_bytes(b"of B, in place")
    store = send(tracker, Store())
    assert set(store.files) == ALL - {"a.mp4"} and "14 bytes in 1 files, where 4" in store.refused["a.mp4"]


def test_where_nothing_can_be_linked_what_changed_is_told_and_the_rest_is_sent(
    tmp_path, tracker, monkeypatch
):
    monkeypatch.setattr(os, "link", no_links)
    log_all(tracker, tmp_path / "out", b"of A")
    tracker.log_artifact(str(tmp_path / "gone.mp4"))
    assert {path.name for path in (tracker.folder / KEPT).glob("*/*")} == {"page.html", "metrics.jsonl"}
    shutil.rmtree(tmp_path / "out/model")
    other = model_folder_of(tmp_path / "out/model", b"of B")
    store = send(tracker, Store())
    assert store.files == dict.fromkeys(ALL - {"mini"}, b"of A")
    assert f"checkpoint {other} in place of checkpoint " in store.refused["mini"]


def test_the_spool_lets_go_of_what_was_sent_and_of_nothing_else(tmp_path, tracker):
    log_all(tracker, tmp_path / "out", b"of A")
    assert len(kept(tracker)) == 4
    store = Store()
    store.down = True
    send(tracker, store)
    assert len(kept(tracker)) == 4
    store.down = False
    assert set(send(tracker, store).files) == ALL and kept(tracker) == []
    (tracker.folder / KEPT / "12345678").mkdir()  # as a kill leaves it
    tracker.finish("FINISHED")
    send(tracker, store)
    assert kept(tracker) == []


def test_another_store_gets_what_still_lies_there(tmp_path, tracker):
    folder = tmp_path / "out/stage"
    log_all(tracker, folder, b"of A")
    send(tracker, Store())
    assert send(tracker, Store("two")).files == dict.fromkeys(ALL, b"of A")
    for name in ("a.mp4", "page.html"):
        os.utime(folder / name, ns=(1, 1))  # the same content, as `dvc checkout` writes it again
    (folder / "metrics.jsonl").write_bytes(b"of B")
    model_folder_of(folder / "model", b"of B")
    store = send(tracker, Store("three"))
    assert store.files == dict.fromkeys(("a.mp4", "page.html"), b"of A")
    assert set(store.refused) == {"mini", "metrics.jsonl"}


def test_a_spool_of_an_earlier_version_is_sent_but_for_models_that_were_replaced(tmp_path, tracker):
    for name, content in (("a", b"of A"), ("b", b"of B")):
        model_folder_of(tmp_path / name, content)
        tags = model_tags(tmp_path / name)
        tracker._append("model", path=str(tmp_path / name), name=name, tags=tags, registered="", alias="")
    (tmp_path / "page.html").write_bytes(b"a page")
    tracker._append("artifact", path=str(tmp_path / "page.html"), folder="")
    model_folder_of(tmp_path / "b", b"of C")
    store = send(tracker, Store())
    assert store.files == {"a": b"of A", "page.html": b"a page"} and set(store.refused) == {"b"}


def test_large_models_are_not_kept_nor_a_folder_that_holds_the_spool(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr("experiments.runs.tracker.MAX_COPIED_BYTES", 3)
    model_folder_of(tmp_path / "model", b"of A")
    tracker.log_model(tmp_path / "model", "mini", model_tags(tmp_path / "model"))
    tracker.log_artifact(str(tmp_path))
    assert kept(tracker) == []


def test_a_temporary_workspace_leaves_its_files_in_the_spool_for_good(tmp_path):
    tracker = SpoolTracker(tmp_path / "out/tracking/run", temporary=True)
    tracker.start(RunStart(name="train"))
    log_all(tracker, tmp_path / "workspace", b"of A")
    tracker.finish("FINISHED")
    shutil.rmtree(tmp_path / "workspace")
    for uri in ("one", "two"):
        assert send(tracker, Store(uri)).files == dict.fromkeys(ALL, b"of A")


def test_a_link_that_dvc_made_is_kept_as_its_file(tmp_path, tracker):
    (tmp_path / "cache").write_bytes(b"of A")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "cache")
    event = keep(tmp_path / "a.mp4", tracker.folder)
    (tmp_path / "cache").unlink()
    found = located(event, tracker.folder)
    assert Path(found["content"]).read_bytes() == b"of A" and changed(found) == ""


@given(st.text(max_size=30))
def test_nothing_outside_of_the_run_is_removed(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("place")
    (place / "run" / KEPT).mkdir(parents=True)
    (place / "precious" / "a").mkdir(parents=True)
    for text in (name, f"{KEPT}/../x", f"{KEPT}/{name}/..", "../precious/a", str(place / "precious" / "a")):
        release({"kept": text}, place / "run")
    assert (place / "precious" / "a").is_dir() and (place / "run").is_dir()


def test_ids_decide_which_model_lies_there(tmp_path):
    checkpoint = model_folder_of(tmp_path / "m", b"one")
    assert other_model(tmp_path / "m", {"nava.checkpoint_id": checkpoint}) == ""
    # of earlier versions: a model that also names its codec, an adapter with the id of the merged model
    assert other_model(tmp_path / "m", {"nava.checkpoint_id": checkpoint, "nava.codec_id": "x"}) == ""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter.json").write_text('{"adapter_id": "ad"}')
    assert other_model(tmp_path / "a", {"nava.checkpoint_id": "merged"}) == ""
    assert other_model(tmp_path / "a", {"nava.adapter_id": "b"}) == "adapter ad in place of adapter b"
    (tmp_path / "m/config.json").unlink()
    assert "no model with an id in place of" in other_model(
        tmp_path / "m", {"nava.checkpoint_id": checkpoint}
    )
    assert (
        other_model(tmp_path / "m", {}) == "" and other_model(tmp_path / "no", {"nava.codec_id": "x"}) == ""
    )


def test_a_folder_of_many_files_is_noted_without_reading_large_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(logged_files, "MAX_HASHED_BYTES", 3)
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        (tmp_path / "clips" / name).write_bytes(b"four")
    event = keep(tmp_path / "clips", tmp_path / "run")
    assert event["noted"]["files"] == 2 and "sha256" not in event["noted"]
    os.utime(tmp_path / "clips/a", ns=(1, 1))
    assert changed(located(event, tmp_path / "run")) == ""  # the newest is b
    os.utime(tmp_path / "clips/b", ns=(1, 1))
    assert "written again" in changed(located(event, tmp_path / "run"))
