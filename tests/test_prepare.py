"""`nava prepare` on raw videos with known truth, and on what is broken."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prepare_world import Sound, Video, ffmpeg, scene, talk, write

from experiments.preparation.config import PrepareConfig
from experiments.preparation.prepare import predict, prepare_set, work_folder
from experiments.preparation.services import Services
from experiments.preparation.source_work import Settings
from pretrain.data.manifest import read_manifest
from pretrain.media.read import probe, read_media
from pretrain.prompt import parse

ROOT = Path(__file__).parent.parent
EVERY = Settings(PrepareConfig(min_confidence=0.0), 24.0)


def transcript_of(video: Video) -> str:
    return " ".join(one.word for one in video.said)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict[str, Video]]:
    """Rates, layouts, rotation, cuts, two speakers, a copy, a crop; every voice by name in a transcript."""
    raw = tmp_path_factory.mktemp("raw")
    videos = {
        "one": talk(raw / "one.mp4", 1, ["slt"]),
        "two": talk(raw / "two.mp4", 2, ["rms", "slt"], 12.0),
        "more": talk(raw / "more.mp4", 3, ["rms"], 7.0, fps=30.0),
    }
    sound = Sound(6.0, 5)
    sound.phrase(0.4, ["zero", "one", "rocket", "garden"], "kal16")
    sound.phrase(3.2, ["seven", "green", "window", "paper"], "kal16")
    films = np.concatenate([scene(2.75, 11), scene(3.25, 12)])
    videos["cuts"] = write(raw / "cuts.mp4", films, sound, cuts=[2.75])
    for name, video in list(videos.items()):
        (raw / f"{name}.txt").write_text(transcript_of(video))
    ffmpeg("-i", raw / "one.mp4", "-c:a", "aac", "-ac", "6", "-c:v", "copy", raw / "surround.mp4")
    ffmpeg("-i", raw / "two.mp4", "-vf", "crop=152:92:4:2,scale=120:-2", "-crf", "30", raw / "two again.mp4")
    shutil.copy(raw / "one.mp4", raw / "one copy.mp4")
    return raw, videos


@pytest.fixture(scope="module")
def prepared(world, tmp_path_factory):
    raw, videos = world
    out = tmp_path_factory.mktemp("set") / "out"
    return raw, videos, out, prepare_set(str(raw), out, EVERY, Services(), 1)


def test_rows_are_public_and_their_clips_are_what_they_say(prepared):
    _, _, out, assembled = prepared
    rows, rejected = read_manifest(out / "manifest.jsonl")
    assert not rejected and len(rows) == assembled.summary["clips"] >= 6
    for row in rows:
        info = probe(row.data_path)
        frames = round(row.duration_s * 24)
        assert (frames - 1) % 4 == 0 and (info.width, info.height) == (row.width, row.height)
        media = read_media(row.data_path, fps=None, sample_rate_hz=None)
        assert media.frames is not None and media.waveform is not None
        assert len(media.frames) == frames
        assert 0 <= len(media.waveform) / media.sample_rate_hz - row.duration_s < 0.07  # a block of AAC
        assert len(parse(row.text).spans) == len(row.speech_start_s) == len(row.meta["reference_paths"])
        for reference in filter(None, row.meta["reference_paths"]):
            assert (out / reference).is_file()
    for name in ("summary.json", "rejected.jsonl", "report.html"):
        assert (out / name).stat().st_size
    assert "<video" in (out / "report.html").read_text()


def test_words_are_within_100_ms_and_none_is_cut(prepared):
    _, videos, out, _ = prepared
    found = {
        result["source"]: result
        for result in map(json.loads, map(Path.read_text, work_folder(out).glob("*/result.json")))
    }
    errors = []
    for name, video in videos.items():
        words = found[f"{name}.mp4"]["words"]
        assert found[f"{name}.mp4"]["words_by"] == "alignment" and len(words) == len(video.said)
        errors += [abs(start - said.start_s) for (_, start, _), said in zip(words, video.said, strict=True)]
        for clip in found[f"{name}.mp4"]["clips"]:
            for edge in (clip["start_s"], clip["start_s"] + clip["num_frames"] / 24.0):
                assert not any(said.start_s + 0.03 < edge < said.end_s - 0.03 for said in video.said)
    assert np.mean(np.array(errors) <= 0.1) >= 0.9, sorted(errors)[-8:]
    assert found["cuts.mp4"]["scenes"] == [pytest.approx(2.75, abs=2 / 24)]


def test_speakers_are_told_apart_and_references_are_of_other_clips(prepared):
    _, videos, out, assembled = prepared
    pairs = []
    for row in assembled.rows:
        video = videos[
            Path(row["meta"]["source"]).stem.replace("surround", "one").replace("two again", "two")
        ]
        for start, name in zip(row["text_list"][0]["speech_start"], row["meta"]["speakers"], strict=True):
            at = row["meta"]["source_start_s"] + start
            said = min(video.said, key=lambda one: abs(one.start_s - at))
            pairs.append((name, said.voice))
        for name in filter(None, row["meta"]["reference_paths"]):
            assert (out / name).is_file() and row["meta"]["speakers"]
    best = {}
    for name in {name for name, _ in pairs}:
        voices = [voice for found, voice in pairs if found == name]
        best[name] = max(set(voices), key=voices.count)
    assert sum(best[name] == voice for name, voice in pairs) >= 0.95 * len(pairs), pairs
    assert len(set(best.values())) == len(best) == 3
    assert assembled.summary["with_reference"] >= 4


def test_copies_and_crops_are_found(prepared):
    _, _, _, assembled = prepared
    reasons = {(one["source"], one["stage"]) for one in assembled.rejected}
    assert ("one.mp4", "duplicate") in reasons or ("one copy.mp4", "duplicate") in reasons
    assert ("two again.mp4", "near_duplicate") in reasons
    sources = {row["meta"]["source"] for row in assembled.rows}
    assert "two.mp4" in sources and "two again.mp4" not in sources
    assert len({"one.mp4", "one copy.mp4", "surround.mp4"} & sources) == 1  # the same sound and pictures


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(prepared, tmp_path):
    raw, _, out, _ = prepared
    other = tmp_path / "other"
    prepare_set(str(raw), other, EVERY, Services(), 2)
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (other / name).read_bytes() == (out / name).read_bytes()
    for clip in sorted((out / "clips").iterdir()):
        assert clip.read_bytes() == (other / "clips" / clip.name).read_bytes()


def test_originals_are_untouched_and_a_new_video_costs_only_itself(world, prepared, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for name in ("one.mp4", "one.txt"):
        shutil.copy(world[0] / name, raw / name)
    before = (raw / "one.mp4").read_bytes()
    prepare_set(str(raw), out, EVERY, Services(), 1)
    stamps = {path: path.stat().st_mtime_ns for path in work_folder(out).glob("*/result.json")}
    shutil.copy(world[0] / "cuts.mp4", raw / "cuts.mp4")
    again = prepare_set(str(raw), out, EVERY, Services(), 1)
    assert again.summary["sources"] == 2 and (raw / "one.mp4").read_bytes() == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def small(path: Path, seed: int = 0) -> Path:
    sound = Sound(2.6, seed)
    sound.phrase(0.4, ["garden", "window", "paper"], "slt")
    return write(path, scene(2.6, 50 + seed, size=(64, 96)), sound).path


def test_rotation_and_variable_rate(tmp_path):
    raw = tmp_path / "raw"
    video = small(raw / "plain.mp4")
    ffmpeg("-display_rotation", "90", "-i", video, "-c", "copy", raw / "turned.mp4")
    select = "select='if(lt(t,1),1,not(mod(n,2)))'"
    ffmpeg("-i", video, "-vf", select, "-fps_mode", "vfr", "-c:a", "copy", raw / "variable.mkv")
    video.unlink()
    assembled = prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1)
    sizes = {
        row["meta"]["source"]: (row["video_info"][0]["image_width"], row["video_info"][0]["image_height"])
        for row in assembled.rows
    }
    assert sizes == {"turned.mp4": (64, 96), "variable.mkv": (96, 64)}
    assert all(row["video_info"][0]["duration"] > 2 for row in assembled.rows)


def test_every_broken_file_is_one_reason(tmp_path):
    raw = tmp_path / "raw"
    good = small(raw / 'good one\'s "name"\n.mp4')
    content = good.read_bytes()
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "cut.mp4").write_bytes(content[: len(content) // 2])
    (raw / "noise.mp4").write_bytes(random.Random(0).randbytes(20_000))
    Path(os.fsdecode(os.fsencode(str(raw)) + b"/bad\xff.mp4")).write_bytes(b"no video")
    ffmpeg("-i", good, "-vn", "-c:a", "copy", raw / "sound only.mp4")
    ffmpeg("-i", good, "-an", "-c:v", "copy", raw / "mute.mp4")
    ffmpeg("-i", good, "-t", "0.1", raw / "short.mp4")
    write(raw / "silent.mp4", scene(2.6, 77, size=(64, 96)), Sound(2.6, 9, noise_db=-90))
    still = np.repeat(scene(0.1, 78, size=(64, 96))[:1], 60, axis=0)
    sound = Sound(2.5, 3)
    sound.phrase(0.4, ["garden", "window"], "rms")
    write(raw / "still.mp4", still, sound)
    write(raw / "black.mp4", still * 0, sound)
    small(raw / "wrong text.mp4", 4)
    (raw / "wrong text.txt").write_text("one <S>mark only")
    (raw / "loop").symlink_to(raw)
    assembled = prepare_set(str(raw), tmp_path / "out", EVERY, Services(), 1)
    stages = {one["source"]: one["stage"] for one in assembled.rejected}
    assert [row["meta"]["source"] for row in assembled.rows] == [good.name]
    assert all("\n" not in one["reason"] for one in assembled.rejected)
    wanted = {
        **dict.fromkeys(("empty.mp4", "cut.mp4", "noise.mp4", "sound only.mp4", "mute.mp4"), "read"),
        **{"silent.mp4": "speech", "still.mp4": "still", "black.mp4": "picture", "wrong text.mp4": "text"},
    }
    assert {name: stages[name] for name in wanted} == wanted
    assert stages["short.mp4"] in ("speech", "length") and len(stages) == len(wanted) + 2
    read_manifest(tmp_path / "out" / "manifest.jsonl")


def test_wrong_orders_are_one_line_before_any_work(tmp_path):
    raw = tmp_path / "raw"
    small(raw / "a.mp4")
    out = tmp_path / "out"
    cases = [
        (str(tmp_path / "none"), out, EVERY, Services(), "no such file"),
        (str(raw), raw / "out", EVERY, Services(), "lies in the folder of the videos"),
        (str(raw), out, EVERY, Services(syncnet=tmp_path / "net"), "no such file or folder"),
        (str(raw), out, EVERY, Services(caption="http://127.0.0.1:1"), "--caption-model"),
        (str(raw), out, Settings(PrepareConfig(steps=("os:remove",)), 24.0), Services(), "not allowed"),
        (str(raw), out, Settings(PrepareConfig(), 24.0, (25,)), Services(), ""),
        (str(raw), out, Settings(PrepareConfig(min_s=3.0), 24.0, (25,)), Services(), "no length"),
    ]
    for place, to, settings, services, said in cases:
        if not said:
            continue
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            prepare_set(place, to, settings, services, 1)
        assert said in str(raised.value) and "\n" not in str(raised.value)
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(ValueError, match="not marked"):
        prepare_set(str(raw), out, EVERY, Services(), 1)
    assert (out / "mine").is_file() and not work_folder(out).exists()
    with pytest.raises(ValueError, match="0 < min_s <= max_s"):
        PrepareConfig(min_s=5, max_s=2)


def test_a_trial_predicts_and_writes_nothing(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = predict(str(world[0]), 2, EVERY, Services(), 1)
    assert found["tried"] == 2 and found["of"] == 7 and 0 < found["kept_share"] <= 1
    assert found["hours_of_work"] > 0 and list(tmp_path.iterdir()) == []


def test_a_step_of_ones_own_is_swapped_in(tmp_path, monkeypatch):
    (tmp_path / "own_steps.py").write_text(
        "from experiments.preparation.records import beyond\n"
        "def never(clip, config):\n    return beyond('never', 'none', 1.0, 0.0, 'not wanted')\n"
        "def broken(clip, config):\n    raise KeyError('oops')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NAVA_PLUGINS", "own_steps")
    small(tmp_path / "raw" / "a.mp4")
    for name, reason in (("never", "not wanted"), ("broken", "KeyError: 'oops'")):
        settings = Settings(PrepareConfig(steps=(f"own_steps:{name}",)), 24.0)
        found = prepare_set(str(tmp_path / "raw"), tmp_path / "out", settings, Services(), 1)
        assert [(one["stage"], one["reason"]) for one in found.rejected if one["data_id"]] == [(name, reason)]
        assert found.rejected[-1]["preview"].startswith("rejected/")


def test_plain_tables_name_speakers_and_references(tmp_path):
    raw = tmp_path / "raw"
    for number in range(2):
        small(raw / f"{number}.mp4", number)
    (raw / "set.csv").write_text(
        "file_name,text,transcript,speaker\n"
        "0.mp4,A talk.,Garden window paper,Ann\n1.mp4,B talk.,garden window paper,Ann\n"
    )
    assembled = prepare_set(str(raw / "set.csv"), tmp_path / "out", EVERY, Services(), 1)
    texts = [row["text_list"][0]["text"] for row in assembled.rows]
    assert texts == ["A talk. <S>Garden window paper<E>", "B talk. <S>garden window paper<E>"]
    assert [row["meta"]["speakers"] for row in assembled.rows] == [["Ann"], ["Ann"]]
    references = [row["meta"]["reference_paths"][0] for row in assembled.rows]
    assert sorted(references) == ["references/Ann-0.wav", "references/Ann-1.wav"]
    for row, reference in zip(assembled.rows, references, strict=True):  # of the other clip
        span = row["text_list"][0]
        seconds = span["speech_end"][0] - span["speech_start"][0]
        assert abs(probe(tmp_path / "out" / reference).duration_s - seconds) < 0.4
        assert not any(file.name.startswith(row["data_id"]) for file in assembled.references[reference])


def test_given_words_that_are_not_said_are_refused(tmp_path):
    raw = tmp_path / "raw"
    for number in range(3):
        small(raw / f"{number}.mp4", number)
    texts = ["<S>garden window paper<E>", "<S>chicken ocean doctor<E>", "<S>garden<E>"]
    lines = "".join(f"{number}.mp4,{text}\n" for number, text in enumerate(texts))
    (raw / "set.csv").write_text(f"file_name,text\n{lines}")
    assembled = prepare_set(str(raw / "set.csv"), tmp_path / "out", EVERY, Services(), 1)
    assert [row["meta"]["source"] for row in assembled.rows] == ["0.mp4"]
    wrong = {one["source"]: (one["stage"], one["measure"]) for one in assembled.rejected if one["data_id"]}
    assert wrong == {"1.mp4": ("words", "alignment"), "2.mp4": ("words", "alignment")}


def command(raw: Path, out: Path) -> list[str]:
    chosen = ["--set", "prepare.min_confidence=0", "--nproc", "1"]
    return [sys.executable, "-m", "experiments.cli", "prepare", str(raw), "--to", str(out), *chosen]


@pytest.mark.slow
def test_killed_at_random_moments_the_rows_are_the_same(prepared, tmp_path):
    raw, _, out, _ = prepared
    other, rng = tmp_path / "other", random.Random(0)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    for _ in range(int(os.environ.get("NAVA_KILLS", "4"))):
        process = subprocess.Popen(
            command(raw, other),
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(4.0, 14.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(raw, other), cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (other / name).read_bytes() == (out / name).read_bytes()
    assert not list(work_folder(other).glob(".*.partial"))


def test_two_on_one_output_is_one_line(tmp_path):
    from pretrain.files import locked

    small(tmp_path / "raw" / "a.mp4")
    out = tmp_path / "out"
    prepare_set(str(tmp_path / "raw"), out, EVERY, Services(), 1)
    with locked(work_folder(out) / "lock", "held"):
        with pytest.raises(ValueError, match="another `nava prepare` writes there"):
            prepare_set(str(tmp_path / "raw"), out, EVERY, Services(), 1)
