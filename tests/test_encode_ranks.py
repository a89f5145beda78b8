"""Encoding by ranks: the same bytes whoever encodes which unit, and going on after any kind of end."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from encode_world import CONFIG, digests, encode_with, job, kill_when, start_rank, write_world
from object_store import BUCKET, object_store
from test_encode import make_row

from experiments.cli import main
from experiments.commands.encode import _rank_of
from pretrain.data.encoding.encode import encode_set
from pretrain.data.encoding.encode_launch import encode_places
from pretrain.data.encoding.encode_ranks import EncodeJob, SetJob
from pretrain.data.manifest import read_manifest, write_manifest
from pretrain.data.stream.buckets import BucketConfig
from pretrain.data.stream.store import LatentStore
from pretrain.storage import place, writing


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    rows = [make_row(folder, index) for index in range(10)]
    rows[4] = replace(rows[4], data_path=folder / "nowhere.mp4")
    rows[8] = replace(rows[8], data_id="clip-1")  # again
    return write_world(folder, rows)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    encode_with(job(world, folder))
    return folder


def test_one_rank_gives_the_sets(world: Path, whole: Path) -> None:
    store = LatentStore(whole / "rows")
    good = [index for index in range(10) if index not in (4, 8)]
    assert [sample.data_id for sample in store] == [f"clip-{index}" for index in good]
    assert [sample.meta["line"] for sample in store] == [index + 1 for index in good]
    assert store.manifest["num_rejected"] == 2
    assert store.manifest["rejected_fields"] == {"data_id": 1, "video_info[0].data_path": 1}
    told = store.manifest["rejected"]
    assert (
        told[0].startswith("rows.jsonl:5 video_info")
        and told[1] == "rows.jsonl:9 data_id: 'clip-1' is also on line 2; make it unique"
    )
    assert {name: shard["samples"] for name, shard in store.manifest["shards"].items()} == {
        "shard-000000.safetensors": 3,
        "shard-000001.safetensors": 2,
        "shard-000002.safetensors": 2,
        "shard-000003.safetensors": 1,
    }
    assert all(sample.video is None for sample in LatentStore(whole / "audio_only"))


def test_the_stage_gives_the_same_samples(world: Path, whole: Path, tmp_path: Path) -> None:
    from pretrain.codecs.load import load_codecs

    encode_set(CONFIG, world / "rows.jsonl", load_codecs(world / "codec"), tmp_path / "rows")
    ours, theirs = LatentStore(tmp_path / "rows"), LatentStore(whole / "rows")
    assert ours.manifest["index_sha256"] == theirs.manifest["index_sha256"]
    assert {path.suffix for path in (tmp_path / "rows").iterdir()} == {".safetensors", ".arrow", ".json"}


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_bytes_do_not_depend_on_the_number_of_ranks(
    world: Path, whole: Path, tmp_path: Path, world_size: int
) -> None:
    encode_with(job(world, tmp_path), world_size)
    assert digests(tmp_path) == digests(whole)


def test_two_processes_at_once_and_one_that_is_killed(world: Path, whole: Path, tmp_path: Path) -> None:
    one = job(world, tmp_path / "sets")
    ranks = [start_rank(one, tmp_path / f"rank-{rank}", rank, 2) for rank in range(2)]
    kill_when(ranks[1], tmp_path / "sets/rows/parts/000001-1.json")
    assert ranks[0].wait(60) == 0
    encode_with(one, 3)
    assert digests(tmp_path / "sets") == digests(whole)


@pytest.mark.parametrize(
    "lost", ["parts/000002-0.json", "shard-000001.safetensors", "index.arrow", "everything"]
)
def test_killed_between_any_two_files(world: Path, whole: Path, tmp_path: Path, lost: str) -> None:
    """What a kill leaves is a finished set less some of its last files."""
    shutil.copytree(whole, tmp_path / "sets")
    rows = tmp_path / "sets/rows"
    (rows / "manifest.json").unlink()
    if lost == "everything":
        shutil.rmtree(rows)
    else:
        (rows / lost).unlink()
    if lost.startswith("shard"):  # a shard comes before its part index
        next((rows / "parts").glob("000001-*")).unlink()
    encode_with(job(world, tmp_path / "sets"), 2)
    assert digests(tmp_path / "sets") == digests(whole)


def test_a_finished_set_is_not_opened_again(world: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "sets")
    moment = {path: path.stat().st_mtime_ns for path in (tmp_path / "sets").rglob("*") if path.is_file()}
    encode_with(job(world, tmp_path / "sets"), 2)
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "sets").rglob("*") if path.is_file()
    } == moment


def test_what_was_encoded_otherwise_is_refused(world: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "sets")
    before = digests(tmp_path / "sets")
    other = replace(CONFIG, latent_dtype="bfloat16")
    with pytest.raises(
        ValueError,
        match=r"encode.json latent_dtype: encoded with float32, asked for bfloat16; give --restart",
    ):
        encode_with(job(world, tmp_path / "sets", other))
    shutil.copytree(world / "codec", tmp_path / "codec")
    config = json.loads((tmp_path / "codec/config.json").read_text())
    (tmp_path / "codec/config.json").write_text(json.dumps({**config, "codec_id": "another"}))
    with pytest.raises(ValueError, match="codec"):
        encode_with(job(world, tmp_path / "sets", codec=str(tmp_path / "codec")))
    changed = tmp_path / "rows.jsonl"
    write_manifest(changed, read_manifest(world / "rows.jsonl", 1.0)[0][:5])
    sets = (replace(job(world, "").sets[0], manifest=str(changed)),)
    with pytest.raises(ValueError, match="manifest_sha256: encoded with"):
        encode_with(job(world, tmp_path / "sets", sets=sets))
    assert digests(tmp_path / "sets") == before
    # fields that change no byte may change
    encode_with(job(world, tmp_path / "sets", replace(CONFIG, num_readers=3, max_bad_fraction=0.6)))


@pytest.mark.parametrize("name", ["../victim", "/victim", ".", "..", "a/b", "a\\b", "", "a\nb"])
def test_a_set_is_a_folder_below_its_place(name: str) -> None:
    """With --restart that folder is removed."""
    with pytest.raises(ValueError, match="cannot name a set's folder") as error:
        SetJob(name=name, manifest="rows.jsonl")
    assert "\n" not in str(error.value)


def test_a_list_that_leads_out_of_its_place_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sets.list").write_text("0\t../victim\trows.jsonl\n")
    (tmp_path / "sets.weight").write_text("../victim\t1\ttext_to_av\n")
    with pytest.raises(SystemExit):
        main(["encode", "--list", str(tmp_path / "sets.list"), "--out", str(tmp_path / "out"), "--restart"])
    assert "'../victim' cannot name a set's folder" in capsys.readouterr().err


def test_too_many_bad_rows_stop_early_or_at_the_end(world: Path, tmp_path: Path) -> None:
    rows = [make_row(tmp_path, index) for index in range(4)]
    missing = [replace(row, data_id=f"bad-{row.data_id}", data_path=tmp_path / "nowhere.mp4") for row in rows]
    write_manifest(tmp_path / "rows.jsonl", [*missing[:2], *rows, *missing[2:]])
    write_manifest(tmp_path / "audio_only.jsonl", rows)
    (tmp_path / "codec").symlink_to(world / "codec")
    one = job(tmp_path, tmp_path / "sets", replace(CONFIG, max_bad_fraction=0.1))
    with pytest.raises(
        ValueError, match=r"rows.jsonl:1 .*nowhere.mp4.* \(1 of 8 rows are bad, more than 10%"
    ):
        encode_with(one)
    assert not list((tmp_path / "sets/rows").glob("parts/*"))  # it did not wait for the end of the unit
    encode_with(
        job(tmp_path, tmp_path / "sets", replace(CONFIG, max_bad_fraction=0.5))
    )  # goes on where that was
    assert LatentStore(tmp_path / "sets/rows").manifest["num_rejected"] == 4


def test_verify_finds_damage_and_repairs_it(world: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "sets")
    shard = tmp_path / "sets/rows/shard-000002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    (tmp_path / "sets/audio_only/shard-000000.safetensors").unlink()
    index = tmp_path / "sets/rows/index.arrow"
    index.write_bytes(index.read_bytes()[:-1])
    encode_with(job(world, tmp_path / "sets"))  # a finished set: kept as it is
    assert digests(tmp_path / "sets") != digests(whole)
    encode_with(job(world, tmp_path / "sets", verify=True), 2)
    assert digests(tmp_path / "sets") == digests(whole)


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Path]:
    with object_store() if request.param == "s3" else nullcontext():
        yield place(f"{request.param}://{BUCKET}/{uuid.uuid4().hex}")


def test_manifest_and_sets_in_an_object_store(world: Path, whole: Path, bucket: Path) -> None:
    """Manifest, clips and sets by URL: the same files as locally."""
    for path in [*world.glob("*.jsonl"), *world.glob("*.mp4")]:
        with writing(bucket / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())
    sets = tuple(replace(one, manifest=f"{bucket}/{Path(one.manifest).name}") for one in job(world, "").sets)
    one = job(world, f"{bucket}/latents", sets=sets)
    encode_with(one, 2)
    expected = digests(whole)
    found = {name: hashlib.sha256((bucket / "latents" / name).read_bytes()).hexdigest() for name in expected}
    differing = {name for name in expected if found[name] != expected[name]}
    parts = {name for name in expected if "/parts/" in name}  # those of local files know their times
    assert differing == {"rows/manifest.json"} | parts
    rejected = LatentStore(bucket / "latents/rows").manifest["rejected"][0]
    assert (
        rejected.startswith(f"rows.jsonl:5 video_info[0].data_path: {bucket}/") and "nowhere.mp4" in rejected
    )
    (bucket / "latents/rows/shard-000000.safetensors").unlink()
    encode_with(replace(one, verify=True))
    again = (bucket / "latents/rows/shard-000000.safetensors").read_bytes()
    assert hashlib.sha256(again).hexdigest() == expected["rows/shard-000000.safetensors"]


def test_a_job_survives_its_file(world: Path, tmp_path: Path) -> None:
    one = job(
        world,
        "s3://bucket/latents",
        replace(CONFIG, buckets=BucketConfig(sizes=("64x32",), frames=(5, 25))),
        verify=True,
    )
    one.save(tmp_path / "job.json")
    assert EncodeJob.load(tmp_path / "job.json") == one
    assert set(json.loads((tmp_path / "job.json").read_text())) == {
        field.name for field in dataclasses.fields(EncodeJob)
    }


@pytest.mark.distributed
def test_the_launcher_and_its_one_line_errors(
    world: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = encode_places(job(world, tmp_path / "sets"), tmp_path / "log", 2)
    assert found["rows"]["samples"] == 8 and digests(tmp_path / "sets") == digests(whole)
    assert "encode: percent 100/100" in capfd.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"nowhere/rows.jsonl: no such file"):
        encode_places(job(world / "nowhere", tmp_path / "x", codec=str(world / "codec")), tmp_path / "log", 1)


@pytest.mark.slow
def test_a_second_launch_does_not_give_its_job_to_the_ranks_of_the_first(world: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resolved.json").write_text("the first one's job")
    with (tmp_path / "run" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another `nava encode` works there"):
            encode_places(job(world, tmp_path / "sets"), tmp_path / "run", 1, restart=True)
    assert (tmp_path / "run" / "resolved.json").read_text() == "the first one's job"


def test_what_stops_a_rank_is_one_line(world: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "sets")
    changed = replace(CONFIG, latent_dtype="bfloat16")
    refused = (
        r"^[^\n]*encode.json latent_dtype: encoded with float32, asked for bfloat16; give --restart[^\n]*$"
    )
    with pytest.raises(ValueError, match=refused):
        encode_places(job(world, tmp_path / "sets", changed), tmp_path / "log", 2)
    found = encode_places(job(world, tmp_path / "sets", changed), tmp_path / "log", 1, restart=True)
    assert (found["rows"]["samples"], found["rows"]["latent_dtype"]) == (8, "bfloat16")


def test_the_verb_by_list_and_as_one_of_several_ranks(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, sounds = world / "rows.jsonl", world / "audio_only.jsonl"
    Path("train.list").write_text(f"0\tspoken\t{rows}\n1\tsounds\t{sounds}\n2\tpictures\t{sounds}\n")
    Path("train.weight").write_text(
        "spoken\t1\ttext_to_av\nsounds\t1\ttext_to_audio\npictures\t1\ttext_to_video\n"
    )
    options = [
        "--list",
        "train.list",
        "--codec",
        str(world / "codec"),
        "--to",
        "sets",
        "--set",
        "encode.max_bad_fraction=0.5",
        "--set",
        "encode.rows_per_shard=4",
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun starts them
    recorded = []
    monkeypatch.setattr("experiments.runs.run.record_run", lambda *given: recorded.append(given))
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(["encode", "mini", *options]) == 0
        told = capsys.readouterr().out
        # the other two sets are one unit each, which is rank 0's
        assert told.count("sets/spoken: rank 0 of 2 is done, others have parts to do") == (rank == "0")
    made = sorted(str(path) for given in recorded for path in given[6])
    assert made == sorted(
        f"sets/{name}/{file}"
        for name in ("spoken", "sounds", "pictures")
        for file in ("manifest.json", "index.arrow")
    )
    video, sound, silent = (LatentStore(f"sets/{name}")[0] for name in ("spoken", "sounds", "pictures"))
    assert [sample.video is None for sample in (video, sound, silent)] == [False, True, False]
    assert [sample.audio is None for sample in (video, sound, silent)] == [False, False, True]
    with pytest.raises(SystemExit):
        main(["encode", "mini", *options, "--restart"])
    assert "remove the sets' folders instead" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["encode", "mini", *options, "--nproc", "2"])
    assert "this process is rank 1 of 2 by its launcher" in capsys.readouterr().err
    monkeypatch.delenv("RANK")
    for wrong, says in (
        (["--nproc", "2"], "belong to --list or --manifest"),
        (["--manifest", "a/rows.jsonl", "b/rows.jsonl"], "'rows' is given twice"),
    ):
        with pytest.raises(SystemExit):
            main(["encode", "mini", *wrong])
        assert says in capsys.readouterr().err


LEFT_OVER = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29533",
}
IN_SLURM = {**LEFT_OVER, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


@pytest.mark.parametrize(
    ("variables", "options", "told"),
    [
        (LEFT_OVER, [], "one process: RANK"),  # nothing says that a launcher started this one
        pytest.param(LEFT_OVER, ["--nproc", "1"], "one process: RANK", marks=pytest.mark.slow),
        pytest.param(IN_SLURM, ["--nproc", "1"], "one process: RANK", marks=pytest.mark.slow),
        ({}, ["--nproc", "1"], ""),
    ],
)
def test_variables_left_over_in_a_shell_encode_everything(
    variables: dict[str, str],
    options: list[str],
    told: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.runs.run.record_run", lambda *given: None)
    monkeypatch.setattr("experiments.commands.encode._ranks", lambda: 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = ["--manifest", str(world / "rows.jsonl"), "--codec", str(world / "codec"), "--to", "sets"]
    few = ["--set", "encode.rows_per_shard=2", "--set", "encode.max_bad_fraction=0.5"]
    assert main(["encode", "mini", *given, *few, *options]) == 0
    manifest = json.loads(Path("sets/rows/manifest.json").read_text())
    assert manifest["samples"] == 8 and len(manifest["shards"]) > 1
    assert told in caplog.text


@pytest.mark.parametrize(
    ("variables", "options", "found"),
    [
        (LEFT_OVER, "", None),
        (LEFT_OVER, "2/3", (2, 3, -1)),
        ({**LEFT_OVER, "TORCHELASTIC_RUN_ID": "none"}, "", (0, 4, 0)),
        ({**LEFT_OVER, "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, "", (0, 4, 0)),
        ({**LEFT_OVER, "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, "", None),
        ({**LEFT_OVER, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, "", (0, 4, -1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}, "", None),
        ({"RANK": "zero", "WORLD_SIZE": "many"}, "", None),
    ],
)
def test_a_rank_is_one_where_it_is_told_or_confirmed(variables, options, found, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _rank_of(options, 0) == found


@pytest.mark.parametrize("text", ["3", "3/3", "-1/2", "a/b", "0/0", "1/2/3"])
def test_a_wrong_rank_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected R/N"):
        _rank_of(text, 0)


def test_a_rank_starts_no_ranks() -> None:
    with pytest.raises(ValueError, match="rank 1 of 2 by --rank 1/2; leave one of them out"):
        _rank_of("1/2", 4)
