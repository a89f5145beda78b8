import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import find_verb
from experiments.commands import benchmark as verbs
from experiments.paper import published
from experiments.paper.layouts import BenchItem, read_seed_tts, read_verse_bench
from experiments.paper.metrics import VERSE_BENCH, rewards_with_options, seed_tts
from experiments.paper.run import Benchmark, measure
from experiments.paper.tables import markdown, metrics_to_log, write_tables
from experiments.scoring import score_files
from experiments.scoring.score_files import ScoreSettings
from pretrain.media.write import write_mp4, write_wav
from rewards.base import Unscorable, score_prepared
from rewards.types import Score

RATE = 16_000
HERE = __name__


class Named:
    """Gives a clip's own level under any name; a stand-in for models that are not here, in this test only."""

    def __init__(self, name: str, parts: tuple = (), quiet_fails: bool = False) -> None:
        self.name, self.parts, self.quiet_fails = name, parts, quiet_fails

    def score(self, clips):
        return score_prepared(
            clips,
            self._prepare,
            lambda levels: [Score(x, parts=dict.fromkeys(self.parts, 2 * x)) for x in levels],
        )

    def _prepare(self, clip):
        level = float(np.sqrt(2 * np.mean(clip.waveform**2)))  # a sine's peak; AAC overshoots at its ends
        if self.quiet_fails and level < 0.25:
            raise Unscorable("too quiet")
        return level


def plugin(name, **more):
    return {f"{HERE}:Named": {"name": name, **more}}


def sound(peak: float) -> np.ndarray:
    return (peak * np.sin(np.arange(RATE // 2) * 0.2)).astype(np.float32)


@pytest.fixture
def bench(tmp_path) -> Path:
    """Six cases in three sets: five clips, of which set3/e is a video without a wav; set1/b has no clip at
    all."""
    root = tmp_path / "bench"
    cases = [
        ("set1", "a", ["rain"], "Hello there."),
        ("set1", "b", [], "No clip."),
        ("set2", "c", ["a dog"], ""),
        ("set2", "d", [], "Speech."),
        ("set3", "e", ["wind"], "One two."),
        ("set3", "f", [], ""),
    ]
    for index, (subset, name, sounds, text) in enumerate(cases):
        folder = root / subset / ("data" if subset == "set3" else "")
        folder.mkdir(parents=True, exist_ok=True)
        content = {"video_prompt": f"scene {name}", "audio_prompt": sounds, "speech_prompt": {"text": text}}
        (folder / f"{name}.json").write_text(json.dumps(content))
        if name != "b":
            frames = np.random.default_rng(index).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
            write_mp4(root / "generated" / f"{name}.mp4", frames, 24.0, sound(0.1 * (index + 1)), RATE)
        if name not in "be":
            write_wav(root / "generated" / f"{name}.wav", sound(0.1 * (index + 1)), RATE)
        if subset != "set3":
            write_wav(root / subset / f"{name}.wav", sound(0.9), RATE)
    return root


def run(items, options, out, metrics=VERSE_BENCH, paper=published.VERSE_BENCH, name="Verse-Bench"):
    rewards = tuple(options)
    benchmark = Benchmark(
        name,
        items,
        metrics,
        paper,
        with_composites=metrics is VERSE_BENCH,
        of_sound=metrics is not VERSE_BENCH,
    )
    return measure(benchmark, ScoreSettings(rewards=rewards, options=options), out)


def test_verse_bench_is_read_as_it_lies_there(bench):
    items = {item.key: item for item in read_verse_bench(bench, bench / "generated")}
    assert list(items) == ["set1/a", "set1/b", "set2/c", "set2/d", "set3/e", "set3/f"]
    assert (items["set1/a"].speech, items["set1/a"].sounds, items["set1/a"].prompt) == (
        "Hello there.",
        ("rain",),
        "scene a",
    )
    assert (items["set1/b"].video, items["set1/b"].sound) == (None, None)
    assert (
        items["set2/c"].reference_sound == bench / "set2" / "c.wav"
        and items["set1/a"].reference_sound is None
    )
    assert items["set3/e"].sound == bench / "generated" / "e.mp4"  # the video's own sound
    heard, seen = items["set1/a"].sound_file(), items["set1/a"].video_file()
    assert heard and seen and (heard.prompt, seen.prompt) == ("rain", "scene a")


def test_images_lie_beside_the_case_or_in_clips(bench):
    (bench / "set1" / "a.jpg").write_bytes(b"")
    (bench / "set3" / "clips").mkdir()
    (bench / "set3" / "clips" / "e.png").write_bytes(b"")
    images = {item.name: item.image for item in read_verse_bench(bench, bench / "generated")}
    assert (
        images["a"] == bench / "set1" / "a.jpg"
        and images["e"] == bench / "set3" / "clips" / "e.png"
        and images["f"] is None
    )


def test_eligible_cases_are_those_of_the_benchmark():
    """As Verse-Bench's own script: sync and WER where speech is asked for, PQ in sets 1 and 2, FD in set 2
    with a sound prompt."""
    items = [
        BenchItem(f"{s}{bool(t)}{bool(p)}", s, t, p)
        for s in ("set1", "set2", "set3")
        for t in ("", "hi")
        for p in ((), ("rain",))
    ]
    counts = {metric.label: sum(map(metric.eligible, items)) for metric in VERSE_BENCH}
    assert counts == {
        "Sync-C": 6,
        "Sync-D": 6,
        "IB": 12,
        "AS": 12,
        "ID": 0,
        "WER": 6,
        "PQ": 8,
        "FD": 2,
        "KL": 2,
        "CS": 4,
        "CE": 8,
        "CU": 8,
        "PC": 8,
        "AV-A": 4,
    }


def test_a_published_name_takes_only_its_own_score(bench, tmp_path):
    items = read_verse_bench(bench, bench / "generated")
    found = run(items, plugin("fd_of_another_model"), tmp_path / "r")
    assert found["metrics"]["FD"]["status"] == "weights missing" and found["metrics"]["FD"]["mean"] is None
    assert (found["metrics"]["FD"]["n"], found["metrics"]["FD"]["eligible"]) == (0, 1)
    assert found["own"]["fd_of_another_model"]["n"] == 5
    page = markdown(found)
    assert (
        "weights missing: fd_verse_bench.weights" in page
        and "| this run | weights missing | weights missing |" in page
    )


def test_means_coverage_and_reasons(bench, tmp_path):
    items = read_verse_bench(bench, bench / "generated")
    found = run(items, plugin("imagebind_av_cosine", quiet_fails=True), tmp_path / "r")["metrics"]["IB"]
    assert (found["n"], found["eligible"]) == (4, 6)  # c, d, e, f; a is too quiet, b has no clip
    assert found["mean"] == pytest.approx(np.mean([0.3, 0.4, 0.5, 0.6]), rel=0.1)
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["reasons"] == {"too quiet": 1, "no clip": 1} and found["status"] == "scored"
    assert found["paper"]["NAVA"] == 0.313


def test_parts_are_metrics_too(bench, tmp_path):
    items = read_verse_bench(bench, bench / "generated")
    found = run(items, plugin("syncnet", parts=["sync_c", "sync_c_verse_bench_haar"]), tmp_path / "r")
    assert (found["metrics"]["Sync-C"]["n"], found["metrics"]["Sync-C"]["eligible"]) == (
        3,
        4,
    )  # a, d, e speak, b has no clip
    assert found["metrics"]["Sync-C"]["mean"] == pytest.approx(2 * np.mean([0.1, 0.4, 0.5]), rel=0.1)
    assert found["metrics"]["Sync-D"]["status"] == "weights missing"
    assert "syncnet.sync_c_verse_bench_haar" in found["own"] and "syncnet.sync_c" not in found["own"]


def test_sync_of_other_crops_is_not_sync_c(bench, tmp_path):
    items = read_verse_bench(bench, bench / "generated")
    found = run(items, plugin("syncnet", parts=["sync_c_verse_bench_haar"]), tmp_path / "r")
    assert found["metrics"]["Sync-C"]["status"] == "weights missing"


def test_rewards_named_in_another_order_keep_the_cases_that_ask_for_them(tmp_path, monkeypatch):
    @contextmanager
    def named(names, options):
        yield [Named(name) for name in names]

    monkeypatch.setattr(score_files, "open_rewards", named)
    wav = tmp_path / "a.wav"
    write_wav(wav, sound(0.5), RATE)
    items = [BenchItem(name, "en", "hello", sound=wav, voice=wav if name == "a" else None) for name in "abc"]
    benchmark, asked = Benchmark("x", items, (), {}, of_sound=True), ("snr_estimate_db", "sim_resemblyzer")
    for rewards in (asked, asked[::-1]):
        found = measure(benchmark, ScoreSettings(rewards=rewards), tmp_path)["own"]
        assert [found[name]["n"] for name in asked] == [3, 1]


def test_a_second_run_scores_nothing_again(bench, tmp_path, monkeypatch):
    items = read_verse_bench(bench, bench / "generated")
    before = run(items, plugin("imagebind_av_cosine"), tmp_path / "r")
    monkeypatch.setattr(Named, "score", lambda *_: pytest.fail("scored again"))
    assert run(items, plugin("imagebind_av_cosine"), tmp_path / "r") == before


def test_video_quality_is_filled_from_both_or_not_at_all():
    found = {
        "paper": published.VERSE_BENCH,
        "composites": {"S_video": None},
        "metrics": {},
        "own": {},
        "benchmark": "b",
        "clips": 0,
        "cases": 0,
    }
    full = {
        label: {"mean": None, "status": "weights missing"}
        for label in ("Sync-C", "Sync-D", "IB", "WER", "PQ", "FD")
    }
    rows = {
        label: {
            **row,
            "needs": "",
            "higher_is_better": True,
            "paper": {},
            "reasons": {},
            "n": 0,
            "eligible": 0,
            "low": None,
            "high": None,
        }
        for label, row in full.items()
    }
    assert "(AS + ID) / 2" not in markdown({**found, "metrics": rows})
    assert "0.7 ((AS + ID) / 2)" in markdown({**found, "metrics": rows, "composites": {"S_video": 0.7}})


@pytest.fixture
def speech(tmp_path) -> Path:
    root = tmp_path / "seed"
    (root / "en").mkdir(parents=True)
    lines = [
        "u1|Hi.|prompt/p.wav|Hello there.",
        "u2|Hi.|prompt/p.wav|More.",
        "",
        "u3|Hi.|prompt/p.wav|Gone.|truth/u3.wav",
    ]
    (root / "en" / "meta.lst").write_text("\n".join(lines) + "\n")
    write_wav(root / "en" / "prompt" / "p.wav", sound(0.5), RATE)
    write_wav(root / "generated" / "u1.wav", sound(0.2), RATE)
    write_mp4(
        root / "generated" / "u2.mp4", np.zeros((12, 16, 16, 3), dtype=np.uint8), 24.0, sound(0.4), RATE
    )
    return root


def test_seed_tts_is_read_as_it_lies_there(speech):
    items = read_seed_tts(speech / "en" / "meta.lst", speech / "generated")
    assert [(item.name, item.speech, item.sound and item.sound.name) for item in items] == [
        ("u1", "Hello there.", "u1.wav"),
        ("u2", "More.", "u2.mp4"),
        ("u3", "Gone.", None),
    ]
    file = items[0].sound_file()
    assert file and file.references == (items[0].voice,) == (speech / "en" / "prompt" / "p.wav",)


def test_two_and_three_fields_are_lines_of_other_tasks(speech):
    meta = speech / "en" / "vc.lst"
    meta.write_text("u1.wav|Hello.|prompt/p.wav\nu2|Bye.\n")
    items = read_seed_tts(meta, speech / "generated")
    assert [(item.name, item.speech, item.voice is None) for item in items] == [
        ("u1", "Hello.", False),
        ("u2", "Bye.", True),
    ]


def test_seed_tts_percent_and_times_100(speech, tmp_path):
    items = read_seed_tts(speech / "en" / "meta.lst", speech / "generated")
    for name, label in (("wer_seed_tts_en", "WER"), ("sim", "SIM")):
        found = run(
            items, plugin(name), tmp_path / name, seed_tts("en"), published.SEED_TTS_EN, "Seed-TTS eval, en"
        )["metrics"]
        assert found[label]["mean"] == pytest.approx(100 * np.mean([0.2, 0.4]), rel=0.1)
        assert (found[label]["n"], found[label]["eligible"]) == (2, 3) and found[label]["paper"]["NAVA"] in (
            5.81,
            62.4,
        )
        assert {row["status"] for row in found.values()} == {"scored", "weights missing"}


def test_wrong_layouts_are_one_line(bench, speech, tmp_path):
    def fails(message, call):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

    fails("no set1, set2 or set3", lambda: read_verse_bench(tmp_path, bench / "generated"))
    fails(
        "give the folder with the generated clips as --clips",
        lambda: read_verse_bench(bench, tmp_path / "none"),
    )
    (bench / "set1" / "a.json").write_text('{"audio_prompt": "rain", "speech_prompt": {"text": ""}}')
    fails("audio_prompt: expected a list of texts", lambda: read_verse_bench(bench, bench / "generated"))
    (bench / "set1" / "a.json").write_text('{"audio_prompt": []}')
    fails(
        "speech_prompt.text: expected a text, got None", lambda: read_verse_bench(bench, bench / "generated")
    )
    (bench / "set1" / "a.json").write_text("{")
    fails("a.json: not JSON", lambda: read_verse_bench(bench, bench / "generated"))
    meta = speech / "en" / "meta.lst"
    meta.write_text("u1|a|b|c|d|e\n")
    fails("meta.lst:1: 6 fields; expected 2 to 5", lambda: read_seed_tts(meta, speech / "generated"))
    meta.write_text("u1|x\nu1.wav|y\n")
    fails("meta.lst:2: 'u1' is there twice", lambda: read_seed_tts(meta, speech / "generated"))
    fails(
        "no such file; give the folder of the Seed-TTS test set",
        lambda: read_seed_tts(speech / "meta.lst", speech / "generated"),
    )


def test_tables_are_written_whole(bench, tmp_path):
    found = run(read_verse_bench(bench, bench / "generated"), plugin("imagebind_av_cosine"), tmp_path / "r")
    page, data = write_tables(found, tmp_path / "r")
    lines = page.read_text().splitlines()
    ours = next(line for line in lines if line.startswith("| this run"))
    assert ours.count("|") == 9 and "(5/6)" in ours
    assert "| NAVA | 7.791 | 7.566 | 0.313 | 0.659 | 0.099 | 6.861 | 0.8328 |" in lines
    assert json.loads(data.read_text()) == json.loads(json.dumps(found))
    logged = metrics_to_log(found)
    assert (
        logged["metrics.IB.coverage"] == pytest.approx(5 / 6)
        and logged["metrics.FD.coverage"] == 0
        and "metrics.FD" not in logged
    )


def test_rewards_with_options_are_asked_for():
    assert rewards_with_options(("snr_estimate_db",), ("audiobox_pq.weights=a", "x.y:Z.b=1")) == (
        "snr_estimate_db",
        "audiobox_pq",
    )


def test_verbs_make_table_and_run(bench, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    verbs.verse_bench(bench, to=tmp_path / "v", out=tmp_path / "out", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["own"]["snr_estimate_db"]["n"] == 5 and found["own"]["identity_colour_edge"]["eligible"] == 0
    verbs.seed_tts(speech, rewards=("snr_estimate_db",), to=tmp_path / "s", out=tmp_path / "out")
    assert "| snr_estimate_db |" in capsys.readouterr().out
    events = [
        json.loads(line)
        for file in sorted((tmp_path / "out" / "tracking").glob("*/events.jsonl"))
        for line in file.open()
    ]
    assert [event["kind"] for event in events].count("finish") == 2
    logged = next(event["values"] for event in events if event["kind"] == "metrics")
    assert logged["own.snr_estimate_db.coverage"] == pytest.approx(5 / 6)
    assert {Path(event["path"]).name for event in events if event["kind"] == "artifact"} >= {
        "table.md",
        "table.json",
    }
    assert (
        find_verb(["evaluate", "verse-bench", "x"]) == ("evaluate verse-bench", ["x"])
        and find_verb(["evaluate", "mini"])[0] == "evaluate"
    )


def test_missing_weights_that_were_asked_for_stop_the_run(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runs.run.ensure_sender", lambda *_: None)
    with pytest.raises(FileNotFoundError, match="syncnet"):
        verbs.verse_bench(
            bench, settings=("syncnet.weights=nowhere.model",), to=tmp_path / "v", out=tmp_path / "out"
        )
    assert not (tmp_path / "v" / "table.md").exists()
