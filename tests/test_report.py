"""The page and its pictures, from synthetic numbers and clips."""

import json

import numpy as np
import pytest

from experiments.report.gates import Gate, Reports, check_gates, read_reports
from experiments.report.metric_keys import by_set, reported_metrics, title
from experiments.report.page import AlignmentPart, Card, Section, marked_prompt, page
from experiments.report.pictures import (
    before_after_dots,
    clip_png,
    contact_sheet,
    filmstrip,
    loss_curves,
    reward_curves,
    spectrogram_db,
)
from experiments.report.summary import print_gates, print_summary
from rewards.types import Clip


def interval(mean, n=208):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": n}


def metrics(wer=0.2, voice=0.85, lips=0.8, lag=0.3, wins=0.8, n=208):
    return {
        "wer_pocketsphinx": {"real": interval(0.02), "codec": interval(0.04), "generated": interval(wer, n)},
        "voice_accuracy_resemblyzer": {"codec": interval(0.95), "generated": interval(voice)},
        "lip_loudness_correlation": {"codec": interval(0.9), "generated": interval(lips)},
        "lip_loudness_lag_frames": {"codec": interval(0.0), "generated": interval(lag)},
        "reference_wins_disagree": {"generated": interval(wins, 100)},
        "wer_pocketsphinx_heldout_pairs": {"generated": interval(0.6, 48)},
    }


@pytest.fixture
def clip():
    frames = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
    return Clip(
        np.sin(np.arange(16_640) * 2 * np.pi * 1000 / 16_000).astype(np.float32) * 0.3, 16_000, frames=frames
    )


def test_suffixes_are_columns():
    assert list(by_set(metrics())) == ["_heldout_pairs", "_disagree"]
    assert title("reference_wins_disagree", reported_metrics()) == "Reference voice wins over the text"


WER = Gate(metric="wer_pocketsphinx", set="pretrain_seen", at_most=0.3, why="<words>")
FLAGS = Gate(metric="guardrails", set="alignment", statistic="worse", at_most=0, why="no loss")


def test_gates_print_their_result_and_why_a_failed_one_is_there(capsys):
    print_gates([])
    assert capsys.readouterr().out == ""
    print_gates(check_gates([WER, FLAGS], Reports(metrics(wer=0.5), {})))
    printed = capsys.readouterr().out
    assert "failed" in printed and "<words>" in printed and "not measured" in printed and "0.500" in printed
    print_gates(check_gates([WER], Reports(metrics(), {})))
    printed = capsys.readouterr().out
    assert "passed" in printed and "<words>" not in printed


def test_clips_that_were_drawn_together_are_counted_as_pairs(capsys):
    found = metrics()
    found["wer_pocketsphinx"]["generated"]["clusters"] = 72
    found["wer_pocketsphinx_heldout_pairs"]["generated"]["clusters"] = 8
    gates = check_gates([WER], Reports(found, {}))
    print_summary(Reports(found, {}))
    print_gates(gates)
    printed = " ".join(capsys.readouterr().out.split())
    assert "208 of 72 pairs" in printed and "48 of 8 pairs" in printed
    assert gates[0].counted == "clips of 72 pairs of word and voice"
    html = page(found, gates, [Section("First", "about", [])], None, {})
    assert "208 clips of 72 pairs of word and voice</td>" in html and "<br>n 48 of 8 pairs</th>" in html
    assert "<td>208 of 72 pairs</td>" in html and "<td>208</td>" in html


def test_missing_or_broken_evaluation_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nava evaluate"):
        read_reports(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: not valid JSON"):
        read_reports(tmp_path / "bad.json")


def test_page_needs_no_other_file_and_escapes_prompts(clip):
    card = Card("generated", b"mp4", clip_png(clip), "one", "slt", "one", "rms", 0.5)
    html = page(
        metrics(),
        check_gates([WER, FLAGS], Reports(metrics(), {})),
        [Section("First", "about", [("A <b>face</b> says <S>one<E>.", [card])]), Section("None", "", [])],
        None,
        {"stage": "3 s"},
    )
    assert "<b>face" not in html and "<mark>one</mark>" in html
    assert "http" not in html and 'src="data:video/mp4;base64,' in html and ">None<" not in html
    assert html.count("✓") == 1 and html.count("✗") == 1  # the word is right, the voice is not
    assert "&lt;words&gt;" in html and "class=pass>passed" in html and "class=open>not measured" in html
    assert "Quality gates" not in page(metrics(), [], [Section("First", "about", [])], None, {})


def test_prompt_marks_become_highlights():
    assert marked_prompt("<S>a & b<E>") == "<mark>a &amp; b</mark>"


def test_filmstrip_spreads_over_the_clip(clip):
    strip = filmstrip(clip.frames, 3)
    np.testing.assert_array_equal(
        strip, np.concatenate([clip.frames[0], clip.frames[12], clip.frames[24]], axis=1)
    )


def test_spectrogram_has_the_tone_where_it_is(clip):
    picture = spectrogram_db(clip.waveform)
    assert picture[:, picture.shape[1] // 2].argmax() == round(1000 / 16_000 * 512)
    assert picture.max() <= 0 and picture.min() >= -70


def test_pictures_are_png_and_same_for_same_input(clip):
    sheet = contact_sheet([{"real": (clip, "a"), "generated": (clip, "b")}], ["prompt"])
    assert sheet.startswith(b"\x89PNG") and sheet == contact_sheet(
        [{"real": (clip, "a"), "generated": (clip, "b")}], ["prompt"]
    )


def test_loss_curves_join_stages_and_do_without(tmp_path):
    for name, rows in (
        ("a", [{"step": 1, "loss_audio": 1.0}]),
        ("b", [{"step": 1, "loss_video": 1.0}, {"step": 2, "validation/video/0.5": 1.0}]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = loss_curves({"a": tmp_path / "a", "b": tmp_path / "b", "c": tmp_path / "c"})
    assert picture is not None and picture.startswith(b"\x89PNG")
    assert loss_curves({"c": tmp_path / "c"}) is None


def alignment(sync=(0.80, 0.95), **raters):
    before, after = sync
    share = {"mean": 0.6, "low": 0.4, "high": 0.8, "n": 40}
    metric = {
        "role": "judge",
        "better": "higher",
        "before": interval(before, 40),
        "after": interval(after, 40),
        "codec": interval(1.1),
        "difference": interval(after - before, 40),
        "closed": share,
        "beyond_codec": after > 1.11,
        "beyond_codec_before": False,
        "unscored": {"before": 0, "after": 2, "codec": 0},
    }
    guard = {
        "unit": "dBFS",
        "low": -50.0,
        "high": None,
        "flagged_before": 0,
        "flagged_after": 1,
        "flagged_codec": 0,
    }
    guard |= {side: interval(-23.0) for side in ("before", "after", "codec")}
    flagged = {"before": 0, "after": 1, "codec": 0}
    return {
        "prompts": 40,
        "codec_clips": 208,
        "seed": 0,
        "metrics": {"sync_judge": metric},
        "guardrails": {"loudness_dbfs": guard},
        "flagged": flagged,
        **raters,
    }


def votes(good):
    gsb = {
        "good": good,
        "same": 10,
        "bad": 10,
        "gsb": 0.4,
        "gsb_low": 0.2,
        "gsb_high": 0.6,
        "sign_p": 0.001,
        "raters": 8,
        "prompts": 40,
    }
    return {"simulated": True, "raters": 12, "gsb": {"overall": gsb}, "gsb_all_raters": {"overall": gsb}}


def test_summary_prints_before_and_after(tmp_path, capsys):
    (tmp_path / "demo.json").write_text(json.dumps(metrics()))
    path = tmp_path / "alignment.json"
    path.write_text(json.dumps(alignment(raters=votes(30))))
    print_summary(read_reports(tmp_path / "demo.json", path))
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "alignment on 40 held-out prompts" in printed
        and "SIMULATED RATERS" in printed
        and "8 of 12 raters count" in printed
    )
    print_summary(read_reports(tmp_path / "demo.json", tmp_path / "none.json"))
    assert "alignment" not in capsys.readouterr().out


def alignment_page(found, examples, curves=None):
    part = AlignmentPart(found, examples, b"png", curves)
    return page(metrics(), [], [Section("First", "about", [])], None, {}, part)


def test_page_part_says_simulated_in_words_and_marks_what_was_driven_beyond(clip):
    card = Card("before", b"mp4", clip_png(clip), "one", "slt", "one", "rms", 0.5)
    examples = Section("The same prompts", "about", [("Says <S>one<E>.", [card])])
    html = alignment_page(alignment((0.8, 1.2), raters=votes(30)), examples)
    assert (
        "<td>driven beyond</td>" in html
        and "SIMULATED RATERS" in html
        and "overall, simulated" in html
        and "width:60.00%" in html
    )
    assert "0 and 2 clips unscored" in html and "at least -50" in html and "Before alignment" in html
    plain = alignment_page(alignment(), Section("The same prompts", "about", []))
    assert (
        "<td>no</td>" in plain
        and "SIMULATED RATERS: no person" not in plain
        and "The same prompts" not in plain
    )
    ties = {"simulated": True, "gsb": {}, "reason": "all <ties>"}
    tied = alignment_page(alignment(raters=ties), examples, b"png")
    assert "all &lt;ties&gt;" in tied and "rounds of alignment" in tied


def test_pictures_of_alignment_are_png_and_do_without(tmp_path):
    assert before_after_dots(alignment()).startswith(b"\x89PNG")
    assert before_after_dots({"metrics": {}}).startswith(b"\x89PNG")
    log = tmp_path / "metrics.jsonl"
    assert reward_curves(log) is None
    log.write_text('{"step": 0, "loss": 1.0}\n')
    assert reward_curves(log) is None
    log.write_text(
        '{"step": 0, "held_out/reward/sync_mini": 0.9}\n{"step": 1, "reward/sync_mini": 0.8, '
        '"held_out/reward/sync_mini": null}\n'
    )
    assert (reward_curves(log) or b"").startswith(b"\x89PNG")
