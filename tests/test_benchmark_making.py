"""`nava evaluate BENCHMARK --model M`: from cases to prompts, clips, scores and table; resumable."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_world import files_in, write_model_and_codec
from PIL import Image

from experiments.commands import benchmark as verbs
from experiments.commands.cases import MakeCases, split_settings
from experiments.commands.generate import Making
from experiments.paper.cases import frames_of_speech, scene_prompt, speech_prompt, text_prompt
from experiments.paper.javisbench import javisbench_file, read_javisbench
from experiments.paper.layouts import BenchItem, read_seed_tts, read_verse_bench
from pretrain.generation.maker import ClipMaker
from pretrain.media.write import write_wav
from pretrain.prompt import parse

RATE = 16_000
QUICK = ("generate.sampler.steps=2", "generate.batch_size=2", "generate.bf16=false", "generate.threads=1")
SMALL = ("generate.height=32", "generate.width=64", "generate.num_frames=5")


def voice(seconds: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(int(seconds * RATE))
    return (0.1 * noise).astype(np.float32)


def write_bench(root: Path) -> Path:
    """Verse-Bench's layout: two good cases, one whose image is no image, one with speech marks of its own."""
    cases = [
        ("set1", "a", "A man.", ["rain"], "zero"),
        ("set1", "torn", "A man.", [], "one"),
        ("set2", "c", "A dog", ["a dog"], ""),
        ("set3", "marks", "He says <S>two<E>", [], "three"),
    ]
    for subset, name, scene, sounds, text in cases:
        folder = root / subset
        folder.mkdir(parents=True, exist_ok=True)
        content = {"video_prompt": scene, "audio_prompt": sounds, "speech_prompt": {"text": text}}
        (folder / f"{name}.json").write_text(json.dumps(content))
    Image.new("RGB", (50, 40), (200, 30, 30)).save(root / "set1" / "a.jpg")
    (root / "set1" / "torn.jpg").write_bytes(b"no image")
    return root


def write_speech(root: Path, count: int = 2) -> Path:
    """Seed-TTS's layout; the last line's voice is not there."""
    (root / "en").mkdir(parents=True)
    lines = [f"u{number}|one two|p.wav|three four" for number in range(count)]
    lines.append("gone|one two|nowhere.wav|zero")
    (root / "en" / "meta.lst").write_text("\n".join(lines) + "\n")
    write_wav(root / "en" / "p.wav", voice(1.0), RATE)
    return root


def write_javis(
    root: Path, columns=("path", "text", "audio_text", "cat0_ind"), texts=("Rain.", "", "A dog.")
):
    root.mkdir(parents=True, exist_ok=True)
    with (root / "JavisBench-mini.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for text in texts:
            rows.writerow(
                [{"text": text, "audio_text": f"sound of {text}"}.get(name, "0") for name in columns]
            )
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_model_and_codec(tmp_path_factory.mktemp("world"))


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """No sender process, and `out` of a call's own."""
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def made_by(world: Path, **more) -> MakeCases:
    return MakeCases(model=world / "model", codec=world / "codec", **more)


def test_a_case_becomes_a_prompt_of_its_scene_sounds_and_speech(tmp_path):
    items = {item.name: item for item in read_verse_bench(write_bench(tmp_path), None)}
    row = scene_prompt(items["a"])
    assert row["prompt"] == "A man. Sound: rain. The speaker says: <S>zero<E>."
    assert row["image_path"] == str((tmp_path / "set1" / "a.jpg").resolve())
    assert [span.text for span in parse(row["prompt"]).spans] == ["zero"]
    assert scene_prompt(items["c"]) == {"data_id": "c", "prompt": "A dog. Sound: a dog."}
    javis = read_javisbench(javisbench_file(write_javis(tmp_path / "j"), mini=True), None)
    assert [item.name for item in javis] == ["sample_0000", "sample_0001", "sample_0002"]
    assert text_prompt(javis[0])["prompt"] == "Rain." and javis[0].sounds == ("sound of Rain.",)


def test_speech_is_as_long_as_its_voice_would_take(tmp_path):
    write_wav(tmp_path / "v.wav", voice(2.0), RATE)
    item = BenchItem("u", "en", speech="a" * 30, voice=tmp_path / "v.wav", voice_text="b" * 20)
    assert frames_of_speech(item, "en", 24.0) == 73  # 30 letters at 10 a second are 3 s
    assert frames_of_speech(replace(item, voice_text=""), "en", 24.0) == 49  # at 15 a second
    assert frames_of_speech(replace(item, voice_text="b"), "en", 24.0) == 97  # at 7.5, the slowest
    assert speech_prompt("en", 24.0, 1.0)(item).get("num_frames") is None  # --duration says it


def test_verse_bench_in_one_command(world, tmp_path, quiet, capsys, monkeypatch):
    """Cases that cannot be made count against coverage, with their reasons; a second run makes nothing."""
    bench, to = write_bench(tmp_path / "bench"), tmp_path / "table"

    def run() -> dict:
        verbs.verse_bench(
            bench, making=made_by(world), settings=(*QUICK, *SMALL), to=to, out=tmp_path / "out", as_json=True
        )
        return json.loads(capsys.readouterr().out.split("\n{", 1)[1].join(["{", ""]))

    first = run()
    assert (first["cases"], first["clips"]) == (4, 2) and sum(first["without"].values()) == 2
    snr = first["own"]["snr_estimate_db"]
    assert snr["eligible"] == 4 and sum(snr["reasons"].values()) == 4 - snr["n"]
    cases = [json.loads(line) for line in (to / "cases.jsonl").read_text().splitlines()]
    reasons = {row["case"]: row["reason"] for row in cases}
    assert list(reasons) == ["set1/a", "set1/torn", "set2/c", "set3/marks"]
    assert reasons["set1/a"] == reasons["set2/c"] == "" and "torn.jpg" in reasons["set1/torn"]
    assert reasons["set3/marks"] == "prompt: has speech marks of its own"
    assert "torn.jpg" in (to / "table.md").read_text()
    before = files_in(to)
    monkeypatch.setattr(ClipMaker, "latents", lambda *_: pytest.fail("made again"))
    assert run() == first and files_in(to) == before


def test_seed_tts_makes_sound_alone(world, tmp_path, quiet, capsys):
    root, to = write_speech(tmp_path / "seed"), tmp_path / "table"
    verbs.seed_tts(
        root, making=made_by(world), rewards=("snr_estimate_db",), settings=QUICK, to=to, out=tmp_path / "out"
    )
    rows = [json.loads(line) for line in (to / "clips" / "index.jsonl").read_text().splitlines()]
    assert [(row["data_id"], row["task"], row["video"]) for row in rows] == [
        ("u0", "T2A", ""),
        ("u1", "T2A", ""),
    ]
    assert {row["num_frames"] for row in rows} == {
        29
    }  # 9 letters at the 7.5 a second of 6 in 1 s, the slowest
    assert "| 1 | nowhere.wav: no such file |" in capsys.readouterr().out


def test_latents_that_are_not_finite_are_the_case_s_reason_and_not_tried_again(
    world, tmp_path, quiet, capsys, monkeypatch
):
    javis, to, calls = write_javis(tmp_path / "javis"), tmp_path / "table", []
    real = ClipMaker.latents

    def broken(self, batch, voiced=None):
        calls.append([job.name for job in batch])
        latents = real(self, batch, voiced)
        assert latents.audio is not None
        latents.audio[calls[-1].index("sample_0002"), 0, 0] = torch.nan
        return latents

    monkeypatch.setattr(ClipMaker, "latents", broken)
    for attempt in range(2):
        verbs.javisbench(
            javis, mini=True, making=made_by(world), settings=(*QUICK, *SMALL), to=to, out=tmp_path / "out"
        )
        page = (to / "table.md").read_text()
        assert "1 of 3 cases have a clip" in page and "NaN or infinite" in page, attempt
        assert "text: expected a text" in page or "prompt: expected a text" in page
    assert calls == [["sample_0000", "sample_0002"]]


def test_no_case_at_all_is_one_line(world, tmp_path, quiet):
    javis = write_javis(tmp_path / "javis", texts=("", " "))
    with pytest.raises(
        ValueError, match="none of 2 cases could be made; JavisBench-mini/sample_0000: prompt"
    ) as found:
        verbs.javisbench(javis, mini=True, making=made_by(world), to=tmp_path / "t", out=tmp_path / "out")
    assert "\n" not in str(found.value) and (tmp_path / "t" / "cases.jsonl").is_file()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("path", "txt"), r"csv:1: unknown column 'txt'; did you mean 'text'\?"),
        (("path", "audio_path"), r"csv:1: no column 'text'; it has path, audio_path"),
        (("text", "text"), r"csv:1: column 'text' is there twice"),
    ],
)
def test_wrong_columns_are_one_line(columns, message, tmp_path):
    path = javisbench_file(write_javis(tmp_path, columns), mini=True)
    with pytest.raises(ValueError, match=message) as found:
        read_javisbench(path, None)
    assert "\n" not in str(found.value)


def fails(message: str, call, *given, **more) -> None:
    with pytest.raises((ValueError, OSError), match=message) as found:
        call(*given, **more)
    assert "\n" not in str(found.value)


def test_wrong_folders_are_one_line(world, tmp_path, quiet):
    javis, bench = write_javis(tmp_path / "j"), write_bench(tmp_path / "b")
    fails("JavisBench.csv: no such file; JavisBench-mini.csv is there: give --mini", verbs.javisbench, javis)
    (javis / "JavisBench-mini.csv").write_text("path,text\na,b,c\n")
    fails("csv:2: 3 fields, the header has 2", verbs.javisbench, javis, mini=True, making=made_by(world))
    (bench / "set2" / "A.json").write_text((bench / "set1" / "a.json").read_text())
    fails("A.json: .*a.json has the same name", read_verse_bench, bench, None)
    meta = write_speech(tmp_path / "s") / "en" / "meta.lst"
    meta.write_text("u|a|p.wav|b\nu|a|p.wav|b\n")
    fails("meta.lst:2: 'u' is there twice", read_seed_tts, meta, None)


def test_wrong_options_are_one_line_before_a_clip_is_made(world, tmp_path, quiet):
    bench, to = write_bench(tmp_path / "b"), tmp_path / "t"

    def run(**more) -> None:
        verbs.verse_bench(bench, to=to, out=tmp_path / "out", **more)

    only = "clips are made by --model only"
    fails(f"--duration: {only}", run, clips=bench, making=MakeCases(making=Making(duration=1.0)))
    fails(f"--set generate.seed=1: {only}", run, clips=bench, settings=("generate.seed=1",))
    fails("--seeds: a case has one clip", run, making=made_by(world, making=Making(seeds="0,1")))
    fails("nowhere: no such file or folder", run, making=MakeCases(model=tmp_path / "nowhere"))
    fails("unknown reward", run, making=made_by(world), rewards=("snr",))
    missing = (*QUICK, *SMALL, "syncnet.weights=nowhere.model")
    fails("syncnet", run, making=made_by(world), settings=missing)
    assert not (to / "clips").exists()
    of_recipe, of_rewards = split_settings(("generate.a=1", "sim.weights=b", "ray.c=2"))
    assert of_recipe == ("generate.a=1", "ray.c=2") and of_rewards == ("sim.weights=b",)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_gives_the_same(world, tmp_path):
    """Killed after some clips, and again while it scores: in the end all is as of an undisturbed one."""
    root = write_speech(tmp_path / "seed", 12)
    command = [sys.executable, "-m", "experiments.cli", "evaluate", "seed-tts", str(root)]
    command += ["--model", str(world / "model"), "--codec", str(world / "codec")]
    command += ["--rewards", "snr_estimate_db", *(word for text in QUICK for word in ("--set", text))]
    repository = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(repository), "NAVA_PLUGINS": ""}

    def start(to: Path) -> subprocess.Popen:
        work = to.with_name(f"{to.name}-work")
        work.mkdir(exist_ok=True)
        with (work / "said.txt").open("ab") as said:
            return subprocess.Popen([*command, "--to", str(to)], cwd=work, env=env, stdout=said, stderr=said)

    def killed(to: Path, when) -> None:
        job, end = start(to), time.monotonic() + 300
        while job.poll() is None and not when() and time.monotonic() < end:
            time.sleep(0.005)
        assert job.poll() is None, "ended before it was killed"
        job.send_signal(signal.SIGKILL)
        job.wait()

    plain, disturbed = tmp_path / "plain", tmp_path / "disturbed"
    assert start(plain).wait(300) == 0, (tmp_path / "plain-work" / "said.txt").read_text()[-2000:]
    clips = disturbed / "clips"
    killed(disturbed, lambda: len(list(clips.glob(".nava-parts/rows/*.json"))) >= 3)
    assert 3 <= len(list(clips.glob(".nava-parts/rows/*.json"))) < 12
    killed(disturbed, lambda: (clips / "index.jsonl").is_file() and not (clips / ".nava-parts").exists())
    assert start(disturbed).wait(300) == 0
    assert files_in(clips) == files_in(plain / "clips")
    for name in ("table.md", "cases.jsonl"):
        assert (disturbed / name).read_text() == (plain / name).read_text()
