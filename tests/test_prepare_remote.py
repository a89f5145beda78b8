"""`nava prepare` on videos in object stores: fetched one at a time, nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
from prepare_world import Sound, scene, write

from experiments.preparation.config import PrepareConfig
from experiments.preparation.prepare import prepare_set, work_folder
from experiments.preparation.services import Services
from experiments.preparation.source_work import Settings
from experiments.preparation.sources import find_sources

EVERY = Settings(PrepareConfig(min_confidence=0.0, max_text_share=1.0), 24.0)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    sound = Sound(2.6, 1)
    sound.phrase(0.4, ["garden", "window", "paper"], "slt")
    return write(tmp_path_factory.mktemp("one") / "a.mp4", scene(2.6, 51, size=(64, 96)), sound).path


def fill(store, root: str, video: Path) -> None:
    content = video.read_bytes()
    for name, data in {
        "one/a.mp4": content,
        "one/a.txt": b"garden window paper",
        "b.mp4": content,
        "cut.mp4": content[: len(content) // 3],
        "empty.mp4": b"",
        "notes.pdf": b"x",
        ".hidden.mp4": b"x",
    }.items():
        store.pipe_file(f"{root}/{name}", data)


def test_a_prefix_gives_the_rows_of_the_same_folder(video, tmp_path):
    store = fsspec.filesystem("memory")
    fill(store, "/raw", video)
    folder = tmp_path / "raw"
    for name in store.find("/raw"):
        (folder / name.removeprefix("/raw/")).parent.mkdir(parents=True, exist_ok=True)
        (folder / name.removeprefix("/raw/")).write_bytes(store.cat_file(name))
    try:
        far = prepare_set("memory://raw", tmp_path / "far", EVERY, Services(), 1)
    finally:
        store.rm("/raw", recursive=True)
    near = prepare_set(str(folder), tmp_path / "near", EVERY, Services(), 1)
    assert far.rows == near.rows and len(far.rows) == 1
    assert far.summary["left_out"] == {".pdf": 1, "hidden file": 1}
    stages = {one["source"]: one["stage"] for one in far.rejected}
    assert stages == {"cut.mp4": "read", "empty.mp4": "read", "one/a.mp4": "duplicate"} or stages == {
        "cut.mp4": "read",
        "empty.mp4": "read",
        "b.mp4": "duplicate",
    }
    assert not list(work_folder(tmp_path / "far").rglob("source.*"))  # nothing fetched is kept


def test_patterns_single_objects_and_wrong_places(video):
    store = fsspec.filesystem("memory")
    fill(store, "/some", video)
    try:
        config = EVERY.config
        assert [one.name for one in find_sources("memory://some/*.mp4", config)[0]] == [
            "b.mp4",
            "cut.mp4",
            "empty.mp4",
        ]
        (one,), _, _ = find_sources("memory://some/one/a.mp4", config)
        assert one.name == "a.mp4" and one.url.endswith("some/one/a.mp4") and one.num_bytes > 0
        (text,) = [one for one in find_sources("memory://some", config)[0] if one.name == "one/a.mp4"]
        assert text.given.transcript == "garden window paper"
        for place, said in (("memory://nothing/here", "no video"), ("x9://a/b", "unknown protocol")):
            with pytest.raises((ValueError, FileNotFoundError)) as raised:
                find_sources(place, config)
            assert said in str(raised.value) and "\n" not in str(raised.value)
    finally:
        store.rm("/some", recursive=True)


@pytest.mark.slow
def test_s3_by_two_processes_and_a_store_that_goes_away(video, tmp_path):
    from object_store import BUCKET, object_store

    with object_store() as server:
        store = fsspec.filesystem("s3", use_listings_cache=False)
        fill(store, f"{BUCKET}/raw", video)
        place = f"s3://{BUCKET}/raw"
        assembled = prepare_set(place, tmp_path / "out", EVERY, Services(), 2)
        assert len(assembled.rows) == 1
        shutil.rmtree(work_folder(tmp_path / "out"))
        found = find_sources(place, EVERY.config)[0]
        server.stop()
        with pytest.raises(OSError) as raised:
            prepare_set(place, tmp_path / "out", EVERY, Services(), 1)
        assert "\n" not in str(raised.value) and BUCKET in str(raised.value)
        assert (tmp_path / "out" / "manifest.jsonl").is_file() and len(found) == 4
        server.start()
        assert prepare_set(place, tmp_path / "out", EVERY, Services(), 1).rows == assembled.rows


@pytest.mark.parametrize("place", ["one/*.mp4", "one/a.mp4", "*/*.mp4", "one"])
def test_texts_beside_what_a_pattern_or_a_name_finds_are_read(place):
    store = fsspec.filesystem("memory")
    for name in ("one/a.mp4", "one/a.txt", "one/other.txt", "two/a.txt"):
        store.pipe_file(f"/texts/{name}", b"what is said")
    try:
        (found,), _, left_out = find_sources(f"memory://texts/{place}", EVERY.config)
    finally:
        store.rm("/texts", recursive=True)
    assert found.given.transcript == "what is said"
    assert dict(left_out) == ({".txt": 1} if place == "one" else {})
