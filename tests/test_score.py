import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.reward_speed import speed
from experiments.commands.score import score
from experiments.scoring.clips import index_clips, list_clips, load_clip
from experiments.scoring.compare import read_set
from experiments.scoring.config import settings_from
from experiments.scoring.score_files import ScoreSettings, score_files
from experiments.scoring.store import ScoreStore
from experiments.scoring.summary import show, summarise
from pretrain.files import path_in_row
from pretrain.media.write import write_mp4, write_wav
from rewards.base import score_prepared
from rewards.types import Score


@pytest.fixture(autouse=True)
def unrecorded(monkeypatch):
    """Scores are no runs here: the current folder may be the repository."""
    monkeypatch.setattr("experiments.runs.run.record_run", lambda *_: None)


RATE = 16_000


class MeanLevel:
    """The test's own reward: rms of the sound, and how often it was asked."""

    calls = 0
    fail_at = ""

    def __init__(self, scale: float = 1.0) -> None:
        self.name, self.scale = "mean_level", scale

    def score(self, clips):
        MeanLevel.calls += len(clips)
        if any(clip.name == MeanLevel.fail_at for clip in clips):
            raise KeyboardInterrupt
        return score_prepared(
            clips, lambda clip: clip, lambda some: [Score(self.scale * rms(clip)) for clip in some]
        )


def rms(clip) -> float:
    return float(np.sqrt(np.mean(clip.waveform**2)))


PLUGIN = f"{__name__}:MeanLevel"


@pytest.fixture(autouse=True)
def counting():
    MeanLevel.calls, MeanLevel.fail_at = 0, ""


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    for index in range(4):
        write_mp4(folder / f"c{index}.mp4", picture(index), 25.0, tone(0.1 * (index + 1)), RATE)
    write_wav(folder / "c0.wav", tone(0.9), RATE)  # belongs to the video of that name
    write_wav(folder / "only_sound.wav", tone(0.5), 44_100)
    return folder


def picture(seed: int, frames: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8)


def tone(peak: float, seconds: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def settings(**more) -> ScoreSettings:
    return ScoreSettings(**{"rewards": (PLUGIN, "snr_estimate_db"), "batch": 2, **more})


def values(rows, name="mean_level"):
    return {row["clip"]: row["scores"][name]["value"] for row in rows}


def test_a_folder_lists_videos_and_sounds_of_their_own(clips):
    assert [file.name for file in list_clips(clips)] == ["c0", "c1", "c2", "c3", "only_sound"]
    video, sound = load_clip(list_clips(clips)[0]), load_clip(list_clips(clips)[-1])
    assert video.frames is not None and (video.fps, video.sample_rate_hz, len(video.frames)) == (
        25.0,
        RATE,
        12,
    )
    assert (sound.frames, sound.sample_rate_hz) == (None, 44_100)


def test_scores_are_right_and_every_clip_is_decoded_once(clips, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        "experiments.scoring.score_files.load_clip", lambda file: (read.append(file.name), load_clip(file))[1]
    )
    rows = score_files(list_clips(clips), settings(), tmp_path / "s.jsonl")
    assert read == ["c0", "c1", "c2", "c3", "only_sound"]
    expected = {"c0": 0.1, "c1": 0.2, "c2": 0.3, "c3": 0.4, "only_sound": 0.5}
    assert values(rows) == pytest.approx(
        {name: peak / math.sqrt(2) for name, peak in expected.items()}, rel=0.05
    )
    assert rows[0]["guardrails"]["motion"] > 0.1 and rows[-1]["guardrails"]["motion"] is None


def test_kept_rows_are_not_scored_again_until_the_clip_changes(clips, tmp_path):
    out = tmp_path / "s.jsonl"
    before = score_files(list_clips(clips), settings(), out)
    MeanLevel.calls = 0
    assert score_files(list_clips(clips), settings(batch=7), out) == before and MeanLevel.calls == 0
    os.utime(clips / "c1.mp4", ns=(1, 1))  # same content, another time: a fresh checkout
    assert score_files(list_clips(clips), settings(), out) == before and MeanLevel.calls == 0
    write_mp4(clips / "c2.mp4", picture(9), 25.0, tone(0.8), RATE)
    after = score_files(list_clips(clips), settings(), out)
    assert MeanLevel.calls == 1
    assert values(after)["c2"] == pytest.approx(0.8 / math.sqrt(2), rel=0.05)
    assert len(out.read_text().splitlines()) == 5


def test_a_changed_prompt_is_another_clip(clips, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    out = tmp_path / "s.jsonl"
    for words in ("one", "two", "two"):
        prompts.write_text(
            json.dumps({"prompt": f"A man says <S>{words}<E>.", "video": "clips/c0.mp4", "data_id": "a"})
            + "\n"
        )
        score_files(list_clips(prompts), settings(), out)
    assert MeanLevel.calls == 2


def test_an_interrupted_run_goes_on(clips, tmp_path):
    out = tmp_path / "s.jsonl"
    MeanLevel.fail_at = "c3"
    with pytest.raises(KeyboardInterrupt):
        score_files(list_clips(clips), settings(), out)
    assert [json.loads(line)["clip"] for line in out.read_text().splitlines()] == ["c0", "c1"]
    with out.open("a") as file:
        file.write('{"clip": "c2", "conf')  # what a kill in the middle of a write leaves
    MeanLevel.fail_at = "only_sound"
    with pytest.raises(KeyboardInterrupt):
        score_files(list_clips(clips), settings(), out)
    assert [json.loads(line)["clip"] for line in out.read_text().splitlines()] == ["c0", "c1", "c2", "c3"]
    MeanLevel.calls, MeanLevel.fail_at = 0, ""
    rows = score_files(list_clips(clips), settings(), out)
    assert MeanLevel.calls == 1 and [row["clip"] for row in rows] == ["c0", "c1", "c2", "c3", "only_sound"]
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


def test_rows_of_clips_that_are_gone_are_marked_until_they_are_back(clips, tmp_path):
    out, aside = tmp_path / "s.jsonl", tmp_path / "aside.mp4"
    first = score_files(list_clips(clips), settings(), out)
    assert not any("absent" in row for row in first)
    (clips / "c1.mp4").rename(aside)
    score_files(list_clips(clips)[:2], settings(), out)
    marked = {row["clip"]: row.get("absent", False) for row in map(json.loads, out.read_text().splitlines())}
    assert marked == {
        "c0": False,
        "c1": True,
        "c2": False,
        "c3": False,
        "only_sound": False,
    }  # c3: not asked for
    assert read_set(out).rows.keys() == {"c0", "c2", "c3", "only_sound"}
    aside.rename(clips / "c1.mp4")
    score_files(list_clips(clips)[:1], settings(), out)  # it is there again, asked for or not
    assert not any("absent" in line for line in out.read_text().splitlines())
    (clips / "c2.mp4").rename(clips / "renamed.mp4")
    MeanLevel.calls = 0
    rows = score_files(list_clips(clips), settings(), out)
    assert MeanLevel.calls == 1 and rows[:4] == [*first[:2], *first[3:]]
    assert read_set(out).rows.keys() == {"c0", "c1", "c3", "only_sound", "renamed"}


def test_damage_inside_the_file_is_an_error_that_names_the_line(clips, tmp_path):
    out = tmp_path / "s.jsonl"
    score_files(list_clips(clips), settings(), out)
    lines = out.read_text().splitlines()
    out.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"s.jsonl:2: not JSON"):
        score_files(list_clips(clips), settings(), out)


@pytest.mark.parametrize("there", [b"a note without an end of line", b'{"clips": 1}', b"mine\n"])
def test_a_file_of_somebody_is_not_taken_for_a_torn_row(clips, tmp_path, there):
    out = tmp_path / "s.jsonl"
    out.write_bytes(there)
    with pytest.raises(ValueError, match=r"s.jsonl:1: not"):
        score_files(list_clips(clips), settings(), out)
    assert out.read_bytes() == there
    with pytest.raises(IsADirectoryError, match="give --out a file"):
        score_files(list_clips(clips), settings(), tmp_path)


def test_other_settings_do_not_mix(clips, tmp_path):
    out = tmp_path / "s.jsonl"
    score_files(list_clips(clips), settings(), out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="scored with other rewards or settings"):
        score_files(list_clips(clips), settings(options={PLUGIN: {"scale": 2.0}}), out)
    with pytest.raises(ValueError, match="scored with other rewards or settings"):
        score_files(list_clips(clips), settings(rewards=(PLUGIN,)), out)
    assert out.read_bytes() == before


def test_two_processes_do_not_score_into_one_file(clips, tmp_path):
    with ScoreStore(tmp_path / "s.jsonl", "a", {}):
        with pytest.raises(ValueError, match="another process scores into it"):
            score_files(list_clips(clips), settings(), tmp_path / "s.jsonl")
    score_files(list_clips(clips), settings(), tmp_path / "s.jsonl")


def test_a_killed_process_leaves_no_lock(clips, tmp_path):
    hold = "ScoreStore(Path(sys.argv[1]), 'a', {}).__enter__()"
    program = (
        "import os, sys; from pathlib import Path; from experiments.scoring.store import ScoreStore; "
        f"{hold}; os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "s.jsonl")], check=False)
    assert (tmp_path / ".s.jsonl.lock").exists()
    assert len(score_files(list_clips(clips), settings(), tmp_path / "s.jsonl")) == 5


def test_a_broken_clip_is_a_row_with_its_reason(clips, tmp_path):
    (clips / "broken.mp4").write_bytes(b"no video at all")
    rows = {row["clip"]: row for row in score_files(list_clips(clips), settings(), tmp_path / "s.jsonl")}
    assert rows["broken"]["scores"]["mean_level"]["value"] is None
    assert "corrupt or not a media file" in rows["broken"]["scores"]["snr_estimate_db"]["reason"]
    assert rows["c1"]["scores"]["mean_level"]["value"] > 0
    found = summarise(list(rows.values()))["rewards"]["mean_level"]
    assert (found["n"], found["eligible"]) == (5, 6) and list(found["reasons"].values()) == [1]


def test_a_scorer_that_answers_too_few_is_broken(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(MeanLevel, "score", lambda self, clips: [Score(1.0)])
    with pytest.raises(ValueError, match="1 scores for 2 clips"):
        score_files(list_clips(clips), settings(), tmp_path / "s.jsonl")


def test_a_rubric_adds_totals_without_scoring_again(clips, tmp_path):
    rubric = tmp_path / "r.yaml"
    rubric.write_text(
        "items: {mean_level: {weight: 2.0, normalise: batch}}\nguardrails: {min_loudness_dbfs: -12}\n"
    )
    files, out = list_clips(clips), tmp_path / "s.jsonl"
    score_files(files, settings(), out)
    rows = score_files(files, settings_from([PLUGIN, "snr_estimate_db"], rubric, (), files), out)
    assert MeanLevel.calls == 5
    totals = np.array([row["total"]["value"] for row in rows])
    levels = np.array(list(values(rows).values()))
    assert totals == pytest.approx(2 * (levels - levels.mean()) / levels.std())
    assert [bool(row["flags"]) for row in rows] == [
        True,
        True,
        True,
        False,
        False,
    ]  # -23, -17, -13.5, -11, -9 dBFS
    assert summarise(rows)["rewards"]["total"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "total" not in score_files(files, settings(), out)[0]


def test_a_missing_reference_stops_before_anything_is_scored(clips, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps({"prompt": "A man says <S>one<E>.", "video": "clips/c0.mp4", "spk_wavs": ["gone.wav"]})
        + "\n"
    )
    with pytest.raises(FileNotFoundError, match=r"gone.wav: no such file; prompts-00001 refers to it"):
        score_files(list_clips(prompts), settings(), tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_an_index_and_a_training_manifest_give_what_was_asked(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "voice.wav", tone(0.3), RATE)
    meta = {
        "voices": ["slt"],
        "mouth_boxes": [[1, 2, 8, 9]],
        "kind": "speech",
        "reference_paths": ["voice.wav"],
    }
    text = "A woman says <S>one two<E>."
    index = {
        "data_id": "c0",
        "prompt": text,
        "video": "c0.mp4",
        "reference_paths": ["voice.wav"],
        "meta": meta,
    }
    (clips / "index.jsonl").write_text(json.dumps(index) + "\n")
    info = {"data_path": "clips/c0.mp4", "fps": 25, "duration": 0.5, "image_width": 16, "image_height": 16}
    times = {"text": text, "speech_start": [0.1], "speech_end": [0.4]}
    row = {"data_id": "c0", "video_info": [info], "text_list": [times], "meta": meta}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    for source in (clips, clips / "index.jsonl", tmp_path / "train.jsonl"):
        (file,) = list_clips(source)
        clip = load_clip(file)
        assert (clip.spans, clip.voices, clip.mouth_boxes) == (("one two",), ("slt",), ((1, 2, 8, 9),))
        assert clip.references[0] is not None and len(clip.references[0]) == RATE // 2
    assert file.span_times == ((0.1, 0.4),)


def test_paths_of_an_index_are_found_from_anywhere_and_old_ones_as_before(tmp_path, monkeypatch):
    """`./` is the index's folder; without it, as earlier versions wrote, the working directory. A file of the
    same name elsewhere is not taken."""
    folder, elsewhere = tmp_path / "one" / "clips", tmp_path / "two"
    folder.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path / "one")
    new = path_in_row(Path("voice.wav"), Path("clips"))
    assert new == "./../voice.wav" and path_in_row(tmp_path / "v.wav", Path("clips")) == str(
        tmp_path / "v.wav"
    )
    assert path_in_row(Path("voice.wav"), folder, tmp_path / "two") == "./../../two/voice.wav"
    row = {"data_id": "voice", "prompt": "A <S>b<E>.", "video": "voice.mp4", "meta": {}}
    rows = [row | {"reference_paths": [path, ""], "image_path": path} for path in (new, "voice.wav")]
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in (tmp_path / "one", folder, elsewhere):
        (name / "voice.wav").write_text(name.name)
    for here, index, old in ((tmp_path / "one", "clips", "one"), (elsewhere, "../one/clips", "two")):
        monkeypatch.chdir(here)
        files = list(index_clips(Path(index) / "index.jsonl"))
        found = [
            [path.read_text() for path in (file.references[0], file.first_frame) if path] for file in files
        ]
        assert found == [["one", "one"], [old, old]] and files[0].references[1] is None


def test_the_verb_prints_json_and_a_table(clips, tmp_path, capsys):
    score(clips, rewards=(f"snr_estimate_db,{PLUGIN}",), out=tmp_path / "s.jsonl", limit=3, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 3 and found["rewards"]["mean_level"]["n"] == 3
    assert (
        found["rewards"]["mean_level"]["low"]
        < found["rewards"]["mean_level"]["mean"]
        < found["rewards"]["mean_level"]["high"]
    )
    score(clips, rewards=("snr_estimate_db", PLUGIN), out=tmp_path / "s.jsonl", limit=3)
    assert "3 / 3" in capsys.readouterr().out


def test_the_speed_of_rewards_is_measured_on_clips_they_can_score(clips):
    unavailable: dict[str, str] = {}
    names = ["snr_estimate_db", "identity_colour_edge", "lip_loudness_correlation", "sync_mini", PLUGIN]
    found = speed(list_clips(clips)[:3], names, ["sync_mini.model=nowhere"], 2, unavailable)
    assert set(found["rewards"]) == {"snr_estimate_db", "identity_colour_edge", PLUGIN}
    assert all(
        row["scored"] == row["of"] == 3 and row["batched"] > 0 < row["one_by_one"]
        for row in found["rewards"].values()
    )
    assert found["decode"] > 0 and found["mean_clip_seconds"] == pytest.approx(0.5, abs=0.05)
    assert (
        set(unavailable) == {"lip_loudness_correlation", "sync_mini"}
        and "nowhere" in unavailable["sync_mini"]
    )
    assert MeanLevel.calls == 3 * (1 + 2 * 2)  # one pass to warm up, two batched, two one by one


def _scored(clip, group, value):
    score = {"value": value, "reason": "", "parts": {"errors": value, "words": 2.0}, "text": ""}
    return {"clip": clip, "group": group, "scores": {"word_error_rate": score}, "guardrails": {}, "flags": []}


def test_several_clips_of_a_prompt_make_no_interval_narrower(capsys):
    values = {"a": 0.0, "b": 1.0, "c": 3.0}
    once = summarise([_scored(name, name, value) for name, value in values.items()])
    many = summarise([_scored(f"{k}-{i}", k, value) for k, value in values.items() for i in range(8)])
    for name in ("word_error_rate", "word_error_rate.errors", "word_error_rate (errors/words)"):
        assert many["rewards"][name] == {**once["rewards"][name], "n": 24, "clusters": 3, "eligible": 24}
    assert (once["prompts"], many["prompts"], many["clips"]) == (3, 3, 24)
    show(many)
    printed = capsys.readouterr().out
    assert "24 / 24, of 3 prompts" in printed and "24 clips of 3 prompts" in printed


def test_clips_without_a_prompt_are_drawn_one_by_one_and_one_prompt_says_so(capsys):
    alone = summarise([_scored(f"c{i}", "", float(i)) for i in range(4)])
    one = summarise([_scored(f"c{i}", "p", float(i)) for i in range(4)])
    spans = [found["rewards"]["word_error_rate"] for found in (alone, one)]
    assert spans[0]["low"] < spans[0]["high"] and spans[1]["low"] is spans[1]["high"] is None
    assert "clusters" not in spans[0] and spans[1]["clusters"] == 1 and alone["prompts"] == 4
    show(alone)
    assert "prompt" not in capsys.readouterr().out
    show(one)
    assert "nothing is known about other prompts" in capsys.readouterr().out
