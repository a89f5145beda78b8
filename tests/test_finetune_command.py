"""`nava finetune` from media: sets of all kinds, the sound that must be there, and what comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from align_world import align_run, run_align, write_world
from align_world import config as align_config
from test_codecs import sounds

from experiments.cli import main
from experiments.runs.spool import spooled_runs
from finetune.adapters import read_adapter
from finetune.sft.config import SoundConfig
from finetune.sft.sound_checks import of_rows, spread
from pretrain.data.manifest import ManifestRow, read_manifest, write_manifest
from pretrain.launch.stage_run import model_config
from pretrain.media.read import read_media
from pretrain.media.write import write_mp4

pytestmark = pytest.mark.timeout(1500)

FRAMES, FPS, RATE_HZ = 5, 24.0, 16_000
FAST = ("steps=2", "global_batch_size=2", "mixed_precision=fp32", "log_every=1", "clips=1", "clips_every=2")


@pytest.fixture(autouse=True)
def nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    shutil.copy(folder / "base" / "ema.safetensors", folder / "base" / "model.safetensors")
    return folder


def clip(path: Path, seconds: float = FRAMES / FPS, loud: float = 1.0, seed: int = 0) -> ManifestRow:
    """A clip of 32x32 pixels that says a word, its sound of that length and loudness; None = no stream."""
    frames = np.random.default_rng(seed).integers(0, 255, (FRAMES, 32, 32, 3), dtype=np.uint8)
    waveform = loud * sounds()[seed % 4].numpy()[: round(seconds * RATE_HZ)]
    write_mp4(path, frames, FPS, waveform if seconds else None, RATE_HZ)
    duration_s = FRAMES / FPS
    return ManifestRow(
        path.stem, path, FPS, duration_s, 32, 32, "A man says <S>seven<E>.", (0.05,), (duration_s,)
    )


def clips(folder: Path, muted: int = 0, count: int = 20) -> Path:
    """rows.jsonl of clips, the last ones muted."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        clip(folder / f"clip {index:02d}.mp4", loud=0.0 if index >= count - muted else 1.0, seed=index)
        for index in range(count)
    ]
    write_manifest(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def command(world: Path, given: Path | str, to: Path, *more: str) -> list[str]:
    options = [f"--set=finetune.{setting}" for setting in (*FAST, "base_share=0", "checkpoint.interval=1")]
    places = ["--model", str(world / "base"), "--codec", str(world / "codec"), "--to", str(to)]
    return ["finetune", "mini", "--clips", str(given), *places, "--nproc", "1", *options, *more]


def refusal(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and line.startswith("nava: ")
    return line


def test_a_set_muted_in_95_percent_is_refused_with_the_count_and_the_first_file(world, tmp_path, capsys):
    manifest = clips(tmp_path / "set", muted=19)
    line = refusal(command(world, manifest, tmp_path / "to"), capsys)
    assert "the sound of 19 of 20 clips with speech" in line and "19 muted" in line
    assert "clip 01.mp4 (line 2)" in line and "sound.required=false" in line
    assert not (tmp_path / "to").exists() and not (tmp_path / "to-sets").exists()


def test_kinds_of_sound_that_cannot_be_trained_on(tmp_path):
    whole = clip(tmp_path / "whole.mp4")
    late = ManifestRow(**{**vars(whole), "speech_end_s": (5.0,)})
    rows = [
        whole,
        clip(tmp_path / "none.mp4", seconds=0.0),
        clip(tmp_path / "muted.mp4", loud=1e-5),
        late,
        ManifestRow(**{**vars(whole), "data_path": tmp_path / "gone.mp4"}),
        ManifestRow(**{**vars(clip(tmp_path / "still.mp4", loud=0.0)), "text": "A wall."}),
    ]
    report = of_rows("rows", rows, SoundConfig(tolerance_s=0.05))
    assert report.clips == 5  # the wall says nothing
    assert [one.kind for one in report.findings] == ["missing", "muted", "cut off", "missing"]
    with pytest.raises(ValueError, match=r"4 of 5 .*none\.mp4"):
        report.check(SoundConfig())
    assert "4 of 5" in report.check(SoundConfig(max_bad=0.9))


def test_spread_is_even_and_bounded():
    assert list(spread(range(100), 4)) == [0, 25, 50, 75]
    assert list(spread(range(3), 10)) == [0, 1, 2] and list(spread([], 3)) == []


def test_tasks_without_sound_are_refused_before_anything_is_read(world, tmp_path, capsys):
    manifest = clips(tmp_path / "set", count=2)
    silent = command(
        world, manifest, tmp_path / "to", "--set=finetune.tasks={T2AV: 0, TI2AV: 0, TIA2AV: 0, T2V: 1}"
    )
    assert "no sound would be trained on" in refusal(silent, capsys)


def test_base_data_that_are_not_there_are_asked_for(world, tmp_path, capsys):
    manifest = clips(tmp_path / "set", count=2)
    line = refusal(command(world, manifest, tmp_path / "to", "--set=finetune.base_share=0.5"), capsys)
    assert "set finetune.base to one, or finetune.base_share=0" in line


def test_what_is_no_set_is_refused(world, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given, message in (("nowhere", "no such file or folder"), ("empty", "holds no clips")):
        assert message in refusal(command(world, tmp_path / given, tmp_path / "to"), capsys)


@pytest.mark.slow
@pytest.mark.distributed
def test_from_media_to_an_adapter_that_others_load(world, tmp_path, capsys):
    manifest = clips(tmp_path / "set", muted=1)
    to = tmp_path / "to"
    arguments = command(
        world, manifest, to, "--set=finetune.sound.max_bad=0.1", "--set=encode.max_bad_fraction=0.1"
    )
    assert main(arguments) == 0
    assert "the sound of 1 of 20 clips" in capsys.readouterr().out
    base = model_config(world / "base")["checkpoint_id"]
    adapter, _ = read_adapter(to / "adapter")
    assert adapter.base_id == base == model_config(to / "model")["parent"]
    assert adapter.facts["stage"] == "finetune"
    for step in (0, 2):
        made = sorted((to / "samples" / f"step-{step:06d}").iterdir())
        assert [path.suffix for path in made] == [".mp4", ".wav"]
        assert read_media(made[0]).frames is not None
    rows = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    assert [row["audio_seconds/clips"] for row in rows] == [0.4, 0.8]  # 2 clips of 5 tokens a step

    (run,) = [
        run
        for run in spooled_runs(tmp_path / "out" / "tracking")
        if run.start_event()["tags"].get("nava.stage") == "finetune"
    ]
    events = [event for _, event in run.events()]
    models = {event["name"]: event for event in events if event["kind"] == "model"}
    assert models["mini-finetuned"]["version_of"] == base and models["mini-finetuned"]["alias"] == "finetuned"
    assert models["mini-finetuned"]["registered"] == "" and "mini-adapter" in models
    assert {"samples/step-000000", "samples/step-000002"} <= {
        event.get("folder") for event in events if event["kind"] == "artifact"
    }

    capsys.readouterr()
    assert main(arguments) == 0 and "kept" in capsys.readouterr().out
    line = refusal([*arguments, "--set=finetune.lr=1e-5"], capsys)
    assert "lr 0.001, asked for 1e-05" in line and "--to" in line
    aligned = align_run(world, tmp_path / "aligned", align_config(rounds=1, lora=adapter.config))
    aligned = type(aligned)(**{**vars(aligned), "adapter": to / "adapter"})
    aligned.save()
    assert run_align(aligned) == [0], (aligned.out / "log.0").read_text()[-2000:]
    a_scale_of_0_gives_the_clips_of_the_base(world, to / "adapter")


def a_scale_of_0_gives_the_clips_of_the_base(world: Path, adapter: Path) -> None:
    prompts, sizes = (
        world / "prompts.jsonl",
        ("--set=generate.height=32", "--set=generate.width=32", "--limit=1"),
    )
    generate = [
        "generate",
        str(prompts),
        "--model",
        str(world / "base"),
        "--codec",
        str(world / "codec"),
        *sizes,
    ]
    for name, more in (
        ("plain", []),
        ("zero", [f"--adapter={adapter}=0"]),
        ("tuned", [f"--adapter={adapter}"]),
    ):
        assert main([*generate, "--to", name, *more]) == 0
    sound = {name: next((Path(name)).glob("*.wav")).read_bytes() for name in ("plain", "zero", "tuned")}
    assert sound["plain"] == sound["zero"]
    assert sound["tuned"] != sound["plain"]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_folder_of_clips_and_texts_and_all_weights(world, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(4):
        clip(folder / f"{index}.mp4", seed=index)
        (folder / f"{index}.txt").write_text("A man says <S>seven<E>.")
    sizes = ("--set=generate.height=32", "--set=generate.width=32", "--set=generate.num_frames=5")
    assert main([*command(world, folder, tmp_path / "to", *sizes), "--full"]) == 0
    assert (tmp_path / "to" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "to" / "adapter").exists()
    (encoded,) = (tmp_path / "to-sets").glob("*/clips")
    to = tmp_path / "again"
    assert main([*command(world, encoded, to), "--lora"]) == 0  # an encoded set, as it is
    assert (to / "adapter").is_dir() and not (tmp_path / "again-sets").exists()


def test_the_manifest_that_the_clips_make_is_read(tmp_path):
    rows, rejected = read_manifest(clips(tmp_path, count=2))
    assert len(rows) == 2 and not rejected
