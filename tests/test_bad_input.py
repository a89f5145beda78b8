"""Bad input through the command line: one line that says where and what, exit code 2, and nothing
half-written."""

import errno
import json
import logging
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import debug_model
from test_encode import make_row
from titan_world import config as stage_config
from titan_world import write_latents

from experiments.cli import main
from experiments.runs import run as runs
from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.bank import load_bank
from pretrain.data.manifest import ManifestRow, write_manifest
from pretrain.files import read_json, replacing, save_tensors
from pretrain.launch.stage_run import StageRun
from pretrain.media import read as media
from pretrain.media.write import write_mp4, write_wav
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor
from pretrain.titan.weights import load_parent

GOOD = {"data_id": "good", "prompt": "A man says <S>zero<E>."}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """corpus/ of 14 clips, codec/, model/ (debug flavor, random) and voice.wav."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "corpus").mkdir()
    rows = [make_row(folder / "corpus", index) for index in range(14)]
    for name in ("audio_only", "paired", "hq_audio", "validation"):
        write_manifest(folder / "corpus" / f"{name}.jsonl", rows)
    fit_codecs(CodecConfig(max_clips=20, griffin_lim_iterations=2), folder / "corpus", folder / "codec")
    codec_id = read_json(folder / "codec" / "config.json", "")["codec_id"]
    write_model(
        folder / "model",
        "debug",
        flavor("debug"),
        {"ema": debug_model().state_dict()},
        {"codec_id": codec_id},
    )
    write_wav(folder / "voice.wav", next(iter(load_bank().utterances.values()))[0].waveform, 16_000)
    return folder


@pytest.fixture
def nava(tmp_path, monkeypatch, capsys):
    """Runs `nava ...` in an empty folder; returns the one line it ends with, after checking that and the exit
    code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "ensure_sender", lambda *_: None)

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nava: ")]
        assert left.value.code == 2 and len(lines) == 1
        return lines[0]

    return run


def files(folder: Path) -> list[str]:
    """Of a training's folder without the lock beside it."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(folder).as_posix() for path in found)


def prompts(*rows: dict | str) -> Path:
    path = Path("prompts.jsonl")
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"prompt": "cut', "prompts.jsonl:2 json: not valid JSON"),
        ({"prompt": "<S>zero"}, "prompts.jsonl:2 prompt: <S> at character 1 without <E>"),
        ({"prompt": "<S>ze<S>ro<E><E>"}, "prompts.jsonl:2 prompt: <S> at character 6 inside an open span"),
        ({"prompt": "<S> <E>"}, "prompts.jsonl:2 prompt: empty speech span"),
        (
            {"prompt": "<S>zero<E>", "spk_wavs": ["a.wav", "b.wav"]},
            "prompts.jsonl:2 spk_wavs: 2 references for 1 speech spans",
        ),
        (
            {"prompt": "A wall.", "num_frames": 24},
            "prompts.jsonl:2 num_frames: num_frames must be 1 + 4n (1, 5, 9, ...), got 24; ",
        ),
        ({"prompt": "<S>zero<E>", "spk_wavs": ["gone.wav"]}, "gone.wav does not exist"),
    ],
)
def test_a_bad_prompt_is_refused_with_its_line(nava, world, tmp_path, row, says):
    path = prompts(GOOD, row)
    assert says in nava(
        "generate", path, "--model", world / "model", "--codec", world / "codec", "--to", "clips"
    )
    assert files(tmp_path) == ["prompts.jsonl"]


def bad_sound(path: Path, kind: str) -> None:
    if kind == "corrupt":
        path.write_bytes(b"no sound " * 50)
    elif kind == "empty":
        path.touch()
    else:
        write_wav(path, np.zeros(0 if kind == "0 seconds" else 8000, np.float32), 16_000)


@pytest.mark.parametrize("kind", ["corrupt", "empty", "0 seconds", "silent"])
def test_a_reference_that_is_no_voice_is_refused_with_its_row(nava, world, tmp_path, kind):
    bad_sound(tmp_path / "voice.wav", kind)
    path = prompts(GOOD, {"prompt": "<S>zero<E>", "spk_wavs": ["voice.wav"]})
    line = nava("generate", path, "--model", world / "model", "--codec", world / "codec", "--to", "clips")
    assert "prompts.jsonl:2 spk_wavs[0]: " in line and "voice.wav" in line and kind in line
    assert files(tmp_path) == ["prompts.jsonl", "voice.wav"]


def test_non_finite_latents_leave_no_clip(nava, world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    broken = {name: torch.full_like(value, torch.nan) for name, value in debug_model().state_dict().items()}
    write_model(tmp_path / "model", "debug", flavor("debug"), {"ema": broken}, {})
    before = files(tmp_path / "model")
    line = nava("generate", prompts(GOOD), "--model", "model", "--codec", world / "codec", "--to", "clips")
    assert "NaN or infinite" in line
    assert files(tmp_path) == sorted(["prompts.jsonl", *(f"model/{name}" for name in before)])


def corpus_with(world: Path, rows: list[ManifestRow]) -> None:
    shutil.copytree(world / "codec", "out/codec")
    Path("out/corpus").mkdir()
    Path("out/curated").mkdir()
    for name in (
        "corpus/audio_only",
        "corpus/paired",
        "corpus/hq_audio",
        "corpus/validation",
        "curated/curated",
    ):
        write_manifest(f"out/{name}.jsonl", rows)


def bad_clip(kind: str) -> ManifestRow:
    """A row of out/, its clip broken in one way."""
    row = make_row(Path("out"), 40, 24 if kind == "frames" else 25)
    if kind == "missing":
        row.data_path.unlink()
    elif kind == "empty":
        row.data_path.write_bytes(b"")
    elif kind == "corrupt":
        row.data_path.write_bytes(row.data_path.read_bytes()[:900])
    return row


@pytest.mark.parametrize(
    ("kind", "says"),
    [("missing", "no such file"), ("empty", "0 bytes"), ("corrupt", "corrupt"), ("frames", "1 + 4n")],
)
def test_more_than_1_percent_bad_rows_stop_encoding(nava, world, kind, says):
    Path("out").mkdir()
    good = make_row(Path("out"), 1)
    corpus_with(world, [good])
    write_manifest("out/corpus/paired.jsonl", [good, bad_clip(kind)])
    line = nava("encode")
    assert (
        line.startswith("nava: out/corpus/paired.jsonl:2 video_info[0].data_path: ") and "clip-40.mp4" in line
    )
    assert says in line and "1 of 2 rows are bad, more than 1%" in line
    assert not Path("out/latents/paired").exists() and not list(Path("out/latents").glob(".paired*"))


def test_bad_rows_that_are_allowed_are_counted(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "ensure_sender", lambda *_: None)
    Path("out").mkdir()
    corpus_with(world, [make_row(Path("out"), 1)])
    write_manifest("out/corpus/paired.jsonl", [make_row(Path("out"), 1), bad_clip("empty")])
    assert main(["encode", "--set", "encode.max_bad_fraction=0.5"]) == 0
    written = json.loads(Path("out/latents/paired/manifest.json").read_text())
    assert (
        written["samples"] == 1
        and len(written["rejected"]) == 1
        and "paired.jsonl:2" in written["rejected"][0]
    )


def test_other_rates_are_resampled_and_said_once(world, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "ensure_sender", lambda *_: None)
    monkeypatch.setattr(media, "_said", set())
    Path("out").mkdir()
    rows = [make_row(Path("out"), index) for index in (1, 2)]
    for row in rows:
        sound = np.sin(np.arange(24_000) / 9).astype(np.float32) * 0.3
        write_mp4(row.data_path, np.full((26, 32, 32, 3), 90, np.uint8), 25, sound, 24_000)
    corpus_with(world, rows)
    with caplog.at_level(logging.WARNING):
        assert main(["encode"]) == 0
    said = [record.getMessage() for record in caplog.records if "said once" in record.getMessage()]
    assert sorted(line.split(": ")[1].split(",")[0] for line in said) == [
        "frame rate 25 fps",
        "sample rate 24000 Hz",
    ]
    assert json.loads(Path("out/latents/paired/manifest.json").read_text())["samples"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mimi"], "unknown recipe 'mimi'; did you mean 'mini'"),
        (["mini", "--set", "pretrain.flavor=minni"], "unknown model flavor 'minni'; did you mean 'mini'"),
        (
            ["mini", "--set", "pretrain.stages.stage2.sets={pared: 1}"],
            "no encoded data set 'pared'; did you mean 'paired'",
        ),
        (
            ["mini", "--set", "pretrain.stages.stage1.stesp=5"],
            "pretrain.stages.stage1.stesp: unknown key; did you mean 'steps'",
        ),
        (["mini", "--set", "pretrain.stages=3"], "pretrain.stages: expected a mapping"),
        (
            ["mini", "--set", "pretrain.stages.stage1.tasks={T2A: much}"],
            "pretrain.stages.stage1.tasks.T2A: expected float, got 'much'",
        ),
        (["mini", "--set", "pretrain={1: 2}"], "pretrain.1: unknown key; did you mean"),
        (["mini", "--nproc", "3"], "global_batch_size 32 does not split over 3 data-parallel ranks"),
    ],
)
def test_a_wrong_name_stops_pretraining_before_anything_is_made(nava, tmp_path, arguments, says):
    latents(tmp_path)
    before = files(tmp_path)
    assert says in nava("pretrain", *arguments)
    assert files(tmp_path) == before


def latents(folder: Path) -> None:
    write_latents(folder / "out" / "latents")
    for name in ("hq_audio", "curated"):
        shutil.copytree(folder / "out" / "latents" / "paired", folder / "out" / "latents" / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"recipe: mimi\n", "params.yaml recipe: unknown recipe 'mimi'; did you mean 'mini'"),
        (b"pretrain: {seed: \xff}\n", "params.yaml: not YAML"),
        (b"pretrain:\n  stages:\n", "pretrain.stages: expected a mapping"),
    ],
)
def test_wrong_params_are_named(nava, tmp_path, content, says):
    (tmp_path / "params.yaml").write_bytes(content)
    assert says in nava("pretrain", "mini")
    assert files(tmp_path) == ["params.yaml"]


def test_a_busy_port_is_found_before_a_stage_is_replaced(nava, tmp_path):
    latents(tmp_path)
    (tmp_path / "out/pretrain/stage1/model").mkdir(parents=True)
    (tmp_path / "out/pretrain/stage1/model/config.json").write_text("{}")
    before = files(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} for torchrun cannot be used" in nava(
            "pretrain", "mini", "--no-resume", "--port", port
        )
    assert files(tmp_path) == before


def test_checkpoints_of_which_nothing_is_known_are_not_thrown_away(nava, world, tmp_path):
    latents(tmp_path)
    shutil.copytree(world / "codec", tmp_path / "out/codec")
    checkpoint = tmp_path / "out/pretrain/stage1/checkpoint/step-200/.metadata"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("hours of work")
    marker = tmp_path / "out/runs/pretrain_stage1.running.json"
    marker.parent.mkdir()
    marker.write_text(json.dumps({"key": "k", "fingerprint": "of the mini flavor"}))
    before = files(tmp_path)
    line = nava("pretrain", "mini", "--set", "pretrain.flavor=debug")
    assert (
        "out/pretrain/stage1: nothing is known of the training there (no run.json); give --resume-any" in line
    )
    assert "--move-aside to start over (what is there is moved to out/.trash), or --out for" in line
    assert files(tmp_path) == before


def test_an_earlier_stage_of_another_flavor_is_refused(nava, world, tmp_path):
    latents(tmp_path)
    shutil.copytree(world / "codec", tmp_path / "out/codec")
    shutil.copytree(world / "model", tmp_path / "out/pretrain/stage1/model")
    line = nava("pretrain", "mini", "--stage", "stage2")
    assert (
        "out/pretrain/stage1/model/config.json: flavor is 'debug' instead of 'mini'; start from a model of "
        "the same flavor" in line
    )
    assert not (tmp_path / "out/pretrain/stage2").exists()


@pytest.mark.parametrize("damage", ["truncated", "gone", "other size"])
def test_damaged_weights_of_the_earlier_stage_are_named(tmp_path, damage):
    weights = debug_model().state_dict()
    write_model(
        tmp_path / "model", "debug", flavor("debug"), {"model": weights, "ema": weights}, {"ema_updates": 3}
    )
    path = tmp_path / "model" / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "gone":
        path.unlink()
    else:
        smaller = {name: value[:1] for name, value in weights.items()}
        save_tensors(smaller, path)
    run = StageRun(
        config=stage_config(),
        stage="stage1",
        latents=tmp_path,
        out=tmp_path / "run",
        init_from=tmp_path / "model",
    )
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path / "model")) as error:
        load_parent(debug_model(), run)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError) as error,
        replacing(tmp_path / "rows.jsonl"),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x" * 100_000)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "rows.jsonl"))


def test_safetensors_errors_become_errors_of_the_operating_system(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        save_tensors({"a": torch.zeros(3)}, tmp_path / "nowhere" / "a.safetensors")
    assert error.value.filename == str(tmp_path / "nowhere" / "a.safetensors")


def test_a_damaged_json_of_ours_is_named(tmp_path):
    for content in ("{", "[1]", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=r"x\.json: .*make it again"):
            read_json(tmp_path / "x.json", "make it again")
