"""One clip's trouble is that clip's row: unreadable files, rewards that raise, runs that are killed."""

import json
import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.cli import main
from experiments.commands.score import score
from experiments.scoring.clips import list_clips
from experiments.scoring.faults import FAILURES_IN_A_ROW, RewardBroken, TooManyUnreadable
from experiments.scoring.score_files import ScoreSettings, score_files
from experiments.scoring.summary import summarise
from pretrain.media.write import write_wav
from rewards.types import Score

RATE = 16_000


class Peak:
    """Peak of the sound; raises, or is stopped, where a clip's name says so."""

    name = "peak"
    stop_at: set[str] = set()
    repaired = False
    calls: list[int] = []

    def score(self, clips):
        Peak.calls.append(len(clips))
        for clip in clips:
            if clip.name in Peak.stop_at:
                raise KeyboardInterrupt
            if "raise" in clip.name and not Peak.repaired:
                raise RuntimeError(f"no use\nfor {len(clip.waveform)} samples")
        return [
            Score(float(np.abs(clip.waveform).max()), parts={"length": len(clip.waveform)}) for clip in clips
        ]


class Always:
    name = "always"

    def score(self, clips):
        raise ZeroDivisionError("by zero")


PLUGIN, ALWAYS = f"{__name__}:Peak", f"{__name__}:Always"


@pytest.fixture(autouse=True)
def fresh():
    Peak.stop_at, Peak.repaired, Peak.calls = set(), False, []


def sounds(folder: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        wave = np.full(800, 0.1 + 0.8 * index / max(len(names), 1), np.float32)
        write_wav(folder / f"{name}.wav", wave, RATE)
    return folder


def settings(**more) -> ScoreSettings:
    return ScoreSettings(**{"rewards": (PLUGIN,), "batch": 4, **more})


def listed(folder: Path, *rows: dict) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": "A man talks.", **row}) + "\n" for row in rows))
    return path


def test_a_bad_attached_file_is_one_rows_reason(tmp_path):
    sounds(tmp_path, *"abcdefg")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.wav").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    pictures = {"a": "huge.png", "b": "text.png", "d": "gone.png", "e": "good.png"}
    rows = [{"data_id": name, "video": f"{name}.wav", "image_path": path} for name, path in pictures.items()]
    rows.append({"data_id": "f", "video": "f.wav"})
    rows.append({"data_id": "g", "video": "gone.wav"})
    source = listed(tmp_path, *rows)
    found = {
        row["clip"]: row
        for row in score_files(list_clips(source), settings(max_unreadable=1.0), tmp_path / "s")
    }
    assert [name for name, row in found.items() if row["scores"]["peak"]["value"] is not None] == ["e", "f"]
    for name, file in (("a", "huge.png"), ("b", "text.png"), ("d", "gone.png"), ("g", "gone.wav")):
        reason = found[name]["scores"]["peak"]["reason"]
        assert reason.startswith(f"{tmp_path / file}: ") and "\n" not in reason
        assert found[name]["unreadable"]["file"] == str(tmp_path / file)
    summary = summarise(list(found.values()))
    assert sum(summary["unreadable"].values()) == 4 and summary["unreadable"]
    assert not any(str(tmp_path) in why for why in summary["unreadable"])


def test_any_error_of_a_reader_is_a_reason_with_the_files_name(tmp_path, monkeypatch):
    from experiments.scoring import score_files as module

    errors = iter(
        [UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), MemoryError(), KeyError("x"), OSError(5, "I/O")]
    )
    real = module.load_clip

    def load(file):
        if file.name.startswith("bad"):
            raise next(errors)
        return real(file)

    monkeypatch.setattr(module, "load_clip", load)
    files = list_clips(sounds(tmp_path / "f", "bad1", "bad2", "bad3", "bad4", "good"))
    rows = {row["clip"]: row for row in score_files(files, settings(max_unreadable=1.0), tmp_path / "s")}
    assert rows["good"]["scores"]["peak"]["value"] > 0
    for number, kind in enumerate(("UnicodeDecodeError", "MemoryError", "KeyError", "OSError"), start=1):
        reason = rows[f"bad{number}"]["scores"]["peak"]["reason"]
        assert reason.startswith(str(files[number - 1].path)) and kind in reason
    assert [row.get("again", False) for row in rows.values()] == [False, True, False, True, False]


def test_what_may_pass_is_tried_again_and_what_is_damaged_is_not(tmp_path, monkeypatch):
    from experiments.scoring import score_files as module

    folder, out, read = sounds(tmp_path / "f", "a", "slow"), tmp_path / "s.jsonl", []
    (folder / "damaged.wav").write_bytes(b"RIFF and nothing")
    real, down = module.load_clip, [True]

    def load(file):
        read.append(file.name)
        if file.name == "slow" and down:
            raise OSError(5, "Input/output error", str(file.path))
        return real(file)

    monkeypatch.setattr(module, "load_clip", load)
    score_files(list_clips(folder), settings(), out)
    down.clear()
    rows = {row["clip"]: row for row in score_files(list_clips(folder), settings(), out)}
    assert read == ["a", "damaged", "slow", "slow"]
    assert rows["slow"]["scores"]["peak"]["value"] > 0 and "unreadable" not in rows["slow"]
    sounds(folder, "damaged")
    rows = {row["clip"]: row for row in score_files(list_clips(folder), settings(), out)}
    assert read[4:] == ["damaged"] and rows["damaged"]["scores"]["peak"]["value"] > 0


def test_too_many_unreadable_clips_end_the_run_with_the_first_five(tmp_path):
    folder, out = sounds(tmp_path / "f", *(f"a{index}" for index in range(4)), "z"), tmp_path / "s.jsonl"
    for index in range(9):
        (folder / f"bad{index}.wav").write_bytes(b"RIFF")
    with pytest.raises(TooManyUnreadable, match="8 of 14 clips cannot be read") as caught:
        score_files(list_clips(folder), settings(), out)
    text = str(caught.value)
    assert (
        all(f"bad{index}.wav" in text for index in range(5)) and "bad5.wav" not in text and "\n" not in text
    )
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["clip"] for row in kept if row["scores"]["peak"]["value"]] == ["a0", "a1", "a2", "a3"]
    rows = score_files(list_clips(folder), settings(max_unreadable=0.9), out)
    assert sum(row["scores"]["peak"]["value"] is not None for row in rows) == 5
    assert main(["score", str(folder), "--rewards", PLUGIN, "--out", str(tmp_path / "t.jsonl")]) == 1


def test_a_reward_that_raises_on_a_clip_costs_that_clip_alone(tmp_path, capsys):
    folder, out = sounds(tmp_path / "f", "a", "raise1", "b", "c", "raise2"), tmp_path / "s.jsonl"
    assert score(folder, rewards=(PLUGIN,), out=out) == 0
    assert (
        "reward peak failed on 2 clips, the first: raise1: RuntimeError: no use for 800 samples"
        in capsys.readouterr().out
    )
    rows = {row["clip"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["raise2"]["scores"]["peak"]["reason"] == (
        "reward peak failed on raise2: RuntimeError: no use for 800 samples"
    )
    assert [name for name, row in rows.items() if row["scores"]["peak"]["value"]] == ["a", "b", "c"]
    Peak.repaired, Peak.calls = True, []
    assert score(folder, rewards=(PLUGIN,), out=out) == 0 and Peak.calls == [2]
    assert all(json.loads(line)["scores"]["peak"]["value"] for line in out.read_text().splitlines())


def test_a_reward_that_always_raises_is_one_line_with_reward_and_clip(tmp_path, capsys):
    folder, out = sounds(tmp_path / "f", *(f"c{index:02}" for index in range(20))), tmp_path / "s.jsonl"
    with pytest.raises(
        RewardBroken, match=f"reward always failed on c07: .*{FAILURES_IN_A_ROW} clips in a row"
    ):
        score_files(list_clips(folder), settings(rewards=(ALWAYS,), batch=64), out)
    with pytest.raises(SystemExit) as left:
        main(["score", str(folder), "--rewards", ALWAYS, "--out", str(out)])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nava:")]
    assert left.value.code == 2 and len(error) == 1 and "ZeroDivisionError: by zero" in error[0]
    with pytest.raises(RewardBroken):
        main(["score", str(folder), "--rewards", ALWAYS, "--out", str(out), "--debug"])
    few = sounds(tmp_path / "g", "a", "b")
    assert main(["score", str(few), "--rewards", ALWAYS, "--out", str(tmp_path / "t.jsonl")]) == 1
    assert "a: always: reward always failed on a: ZeroDivisionError" in capsys.readouterr().err


def test_killed_and_resumed_at_random_the_rows_are_those_of_one_run(tmp_path):
    names = [f"{'raise' if index % 7 == 0 else 'c'}{index:02}" for index in range(30)]
    folder = sounds(tmp_path / "f", *names)
    for index in range(0, 30, 5):
        (folder / f"{names[index]}.wav").write_bytes(b"RIFF")
    whole = score_files(list_clips(folder), settings(), tmp_path / "whole.jsonl")
    out, rng = tmp_path / "s.jsonl", random.Random(0)
    for _ in range(10):
        Peak.stop_at = set(rng.sample(names, 2))
        with suppress(KeyboardInterrupt):
            score_files(list_clips(folder), settings(batch=rng.randint(1, 9)), out)
        if out.exists() and rng.random() < 0.5:  # killed in the middle of a write
            with out.open("ab") as file:
                file.write(b'{"clip": "c0')
    Peak.stop_at = set()
    assert timeless(score_files(list_clips(folder), settings(), out)) == timeless(whole)


def timeless(rows):
    text = json.dumps(rows)
    parsed = json.loads(text)
    for row in parsed:
        for entry in row["scores"].values():
            del entry["seconds"]
    return parsed


def test_a_file_name_that_is_not_utf8_is_scored_and_resumed(tmp_path):
    folder = sounds(tmp_path / "f", "a")
    (folder / "a.wav").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav"))
    rows = score_files(list_clips(folder), settings(), tmp_path / "s.jsonl")
    assert rows[0]["clip"] == os.fsdecode(b"caf\xe9")
    Peak.calls = []
    assert score_files(list_clips(folder), settings(), tmp_path / "s.jsonl") == rows and not Peak.calls
