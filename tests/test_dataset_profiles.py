"""Profiles of the data that runs read: counts against what was written, bounds, and files of any content."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow_world import open_store, run_of, send

from experiments.runs import dataset_rows
from experiments.runs.dataset_rows import Budget
from experiments.runs.datasets import MAX_PROFILE, about_inputs, described
from experiments.runs.tracker import RunStart, SpoolTracker, new_run_key
from pretrain.data.manifest import ManifestRow, write_manifest


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def profile(path: Path) -> dict:
    return described(path)["profile"]


ROWS = st.lists(
    st.tuples(
        st.floats(0.1, 1e4), st.sampled_from(["slt", "rms", "awb"]), st.sampled_from(["speech", "event"])
    ),
    min_size=1,
    max_size=30,
)


@given(ROWS)
@settings(deadline=None)
def test_a_manifest_has_the_rows_hours_and_speakers_that_were_written(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.jsonl"
        made = [
            ManifestRow(
                data_id=str(number),
                data_path=Path(folder) / "a.mp4",
                fps=24.0,
                duration_s=duration,
                width=64,
                height=64,
                text="A ball.",
                speech_start_s=(),
                speech_end_s=(),
                meta={"voices": [voice], "kind": kind},
            )
            for number, (duration, voice, kind) in enumerate(rows)
        ]
        write_manifest(path, made)
        found = profile(path)
    assert (found["kind"], found["num_rows"], found["with_picture"]) == ("manifest", len(rows), len(rows))
    assert found["hours"] == pytest.approx(sum(duration for duration, _, _ in rows) / 3600, abs=1e-4)
    assert found["speakers"] == len({voice for _, voice, _ in rows})
    assert found["kinds"] == Counter(kind for _, _, kind in rows)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans()), min_size=1))
@settings(deadline=None)
def test_votes_have_raters_cases_and_choices(votes):
    with tempfile.TemporaryDirectory() as folder:
        row = {"left_model": "ours", "right_model": "theirs", "choice": "left", "ours_side": "left"}
        path = lines(
            Path(folder) / "v.jsonl",
            *({**row, "user_id": user, "case_id": case, "simulated": fake} for user, case, fake in votes),
        )
        found = profile(path)
    assert found["kind"] == "votes" and found["num_rows"] == len(votes)
    assert found["raters"] == len({user for user, _, _ in votes})
    assert found["cases"] == len({case for _, case, _ in votes})
    assert (found["models"], found["choices"]) == (2, {"left": len(votes)})
    assert found["simulated"] == sum(fake for _, _, fake in votes)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "He says <S>a<E>.", "spk_wavs": ["a.wav"]},
            {"kind": "prompts", "with_speech": 1, "with_voice": 1},
        ),
        (
            {"prompt": "A wall.", "image_path": "a.png"},
            {"kind": "prompts", "with_image": 1, "with_speech": 0},
        ),
        ({"prompt": "A.", "duration": 3600.0, "video": "a.mp4"}, {"kind": "clips", "hours": 1.0}),
        ({"first": {}, "second": {}, "labels": {}, "case_id": "c"}, {"kind": "preference pairs", "cases": 1}),
        ({"scores": {"a": 1, "b": 2}, "prompt_set": "s", "source": "real"}, {"kind": "scores", "rewards": 2}),
        ({"anything": 1}, {"kind": "rows", "num_rows": 1}),
    ],
)
def test_the_first_row_tells_the_kind(tmp_path, row, expected):
    found = described(lines(tmp_path / "x.jsonl", row))
    assert found["profile"].items() >= expected.items()
    assert [column["name"] for column in found["schema"]] == list(row)


def test_folders_of_the_pipeline_are_known_by_what_describes_them(tmp_path):
    encoded = {
        "samples": 7,
        "shards": {"s": {"bytes": 10}, "t": {"bytes": 5}},
        "codec_id": "c",
        "num_rejected": 2,
    }
    (tmp_path / "latents/one").mkdir(parents=True)
    (tmp_path / "latents/one/manifest.json").write_text(json.dumps(encoded))
    one = profile(tmp_path / "latents/one")
    assert (
        one.items() >= {"kind": "encoded set", "num_rows": 7, "shards": 2, "bytes": 15, "rejected": 2}.items()
    )
    assert profile(tmp_path / "latents").items() >= {"kind": "sets", "num_rows": 7}.items()
    lines(
        tmp_path / "r/index.jsonl", *({"case_id": f"p{n // 3}", "shard": 0, "prompt": "A."} for n in range(6))
    )
    (tmp_path / "r/store.json").write_text(json.dumps({"checkpoint_id": "m", "clips_per_prompt": 3}))
    store = profile(tmp_path / "r")
    assert (
        store.items() >= {"kind": "rollout store", "num_rows": 6, "prompts": 2, "checkpoint_id": "m"}.items()
    )
    summary = {"sets": {"a": {"rows": 3, "seconds": 36.0}}, "prompts": {"p": 2}, "voices": ["x", "y"]}
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/summary.json").write_text(json.dumps(summary))
    assert profile(tmp_path / "corpus").items() >= {"kind": "corpus", "hours": 0.01, "speakers": 2}.items()
    votes = {"user_id": "u", "left_model": "a", "right_model": "b", "case_id": "c"}
    lines(tmp_path / "votes/votes.jsonl", votes, votes)
    lines(tmp_path / "votes/pairs.jsonl", {"first": {}, "second": {}, "labels": {}})
    (tmp_path / "votes/summary.json").write_text(json.dumps({"clips": 1}))
    assert profile(tmp_path / "votes").items() >= {"kind": "votes", "num_rows": 2}.items()


def test_a_large_file_is_said_to_be_uncounted_at_once(tmp_path, monkeypatch):
    path = lines(tmp_path / "x.jsonl", {"prompt": "A."})
    with path.open("r+b") as file:
        file.truncate(20 << 30)  # sparse
    begun = time.perf_counter()
    found = profile(path)
    assert time.perf_counter() - begun < 1.0
    assert found["kind"] == "prompts" and "not counted" in found["uncounted"] and "num_rows" not in found
    monkeypatch.setattr(dataset_rows, "MAX_BYTES", 1000)
    small, budget = lines(tmp_path / "y.jsonl", *[{"prompt": "A."}] * 50), Budget(1500)
    assert "num_rows" in described(small, budget)["profile"]
    assert "left of what a run counts" in described(small, budget)["profile"]["uncounted"]


@given(st.lists(st.one_of(st.binary(max_size=50), st.just(b"[" * 100_000), st.just(b'{"prompt": 1}'))))
@settings(deadline=None)
def test_rows_of_any_content_are_counted_and_stop_nothing(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(b"\n".join(rows))
        found = profile(path)
    assert found["num_rows"] + found.get("unreadable", 0) == sum(
        bool(line.strip()) for line in b"\n".join(rows).split(b"\n")
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "video_info",
    "meta",
    "prompt",
    "user_id",
    "left_model",
    "right_model",
    "case_id",
    "scores",
    "duration",
)


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1), min_size=1, max_size=5))
@settings(deadline=None)
def test_fields_of_any_type_stop_nothing(rows):
    with tempfile.TemporaryDirectory() as folder:
        found = described(lines(Path(folder) / "x.jsonl", *rows))
    assert found == {} or json.dumps(found, allow_nan=False)


def test_a_profile_has_a_size_that_mlflow_takes(tmp_path):
    for number in range(60):
        tally = {"user_id": "u", "left_model": "a", "right_model": "b", "case_id": "c"}
        lines(
            tmp_path / "many" / f"{number:03d}.jsonl",
            *({**tally, "axis": "x" * 300 + str(n)} for n in range(60)),
        )
    found = profile(tmp_path / "many")
    assert len(json.dumps(found)) <= MAX_PROFILE and found["num_rows"] == 3600 and found["shortened"]


def test_code_models_and_places_elsewhere_are_no_data(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"checkpoint_id": "abc"}')
    lines(tmp_path / "rewards/mine.jsonl", {"prompt": "A."})
    inputs: dict[str, str] = dict.fromkeys(
        ("rewards", "rewards/mine.jsonl", "model", "s3://b/x.jsonl", "gone"), "0" * 32
    )
    found = about_inputs({**inputs}, tmp_path)
    assert list(found["datasets"]) == ["rewards/mine.jsonl"] and found["models"] == {
        "model": "checkpoint:abc"
    }


def test_mlflow_has_digest_profile_and_schema(tmp_path, monkeypatch, empty_database):
    client = open_store(tmp_path, monkeypatch, empty_database)
    lines(Path("votes.jsonl"), {"user_id": "u", "left_model": "a", "right_model": "b", "case_id": "c"})
    inputs = {"votes.jsonl": f"sha256:{'ab' * 32}", "pretrain/media": "0" * 32, "gone.jsonl": "1" * 32}
    tracker = SpoolTracker(Path("out/tracking") / new_run_key("align"), about=about_inputs(inputs, Path()))
    tracker.start(RunStart(name="align", inputs=inputs))
    tracker.finish("FINISHED")
    assert send() == 0
    read = run_of(client, tracker).inputs
    found = {entry.dataset.name: entry.dataset for entry in (read.dataset_inputs if read else ())}
    assert set(found) == {"votes.jsonl", "gone.jsonl"}
    votes = found["votes.jsonl"]
    assert votes.digest == "ab" * 18 and json.loads(votes.profile or "")["raters"] == 1
    assert json.loads(votes.schema or "")["mlflow_colspec"][0] == {"name": "user_id", "type": "string"}
    assert json.loads(votes.source)["md5"] == inputs["votes.jsonl"]
