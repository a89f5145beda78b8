"""Conditions for continuous integration, and the exit code of `nava score`."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from experiments.scoring.conditions import OPERATORS, fail_conditions
from pretrain.media.write import write_wav
from rewards.rubric import Rubric
from rewards.types import Score


class Level:
    name = "level"

    def score(self, clips):
        peaks = [float(np.abs(clip.waveform).max()) for clip in clips]
        return [Score(peak, parts={"half": peak / 2}) for peak in peaks]


PLUGIN = f"{__name__}:Level"
RUBRIC = Rubric.from_config({"snr_estimate_db": None})


@pytest.fixture
def clips(tmp_path) -> Path:
    for index, peak in enumerate((0.2, 0.4, 0.6, 0.8)):
        write_wav(tmp_path / "clips" / f"c{index}.wav", np.full(1600, peak, np.float32), 16_000)
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFF")
    return tmp_path / "clips"


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("wer_pocketsphinx>0.2", "wer_pocketsphinx"),
        (" total <= -1e-3 ", "total"),
        ("sync_d_mini >= 9", "sync_judge.sync_d_mini"),
        ("sync_judge.rho_zero<.5", "sync_judge.rho_zero"),
        (f"{PLUGIN}>1", "level"),
        (f"{PLUGIN}.half>1", "level.half"),
        ("level.half>1", "level.half"),
    ],
)
def test_what_a_condition_may_name(text, row):
    (found,) = fail_conditions([text], ["wer_pocketsphinx", "sync_judge", PLUGIN], RUBRIC)
    assert found.row({PLUGIN: "level"}) == row and found.comparison in OPERATORS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("snr_estimate>0", "did you mean 'snr_estimate_db'"),
        ("snr_estimate_db=0", "expected METRIC, one of"),
        ("snr_estimate_db==0", "expected METRIC, one of"),
        ("snr_estimate_db>nan", "expected METRIC, one of"),
        ("snr_estimate_db>1e999", "is not scored"),
        ("snr_estimate_db>0 and total<0", "expected METRIC, one of"),
        ("snr_estimate_db>total", "expected METRIC, one of"),
        ("0.2<snr_estimate_db", "expected METRIC, one of"),
        ("total.part<0", "'total.part' is not scored"),
        ("", "expected METRIC, one of"),
    ],
)
def test_a_wrong_condition_is_one_line(text, says):
    with pytest.raises(ValueError, match="--fail-if") as caught:
        fail_conditions([text], ["snr_estimate_db"], RUBRIC)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_total_is_unknown_without_a_rubric():
    with pytest.raises(ValueError, match="'total' is not scored"):
        fail_conditions(["total<0"], ["snr_estimate_db"], None)


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ([], 0, ""),
        (["--fail-if", "level>0.6"], 0, "passed  level>0.6: 0.5 (0."),
        (["--fail-if", "level>=0.4", "--fail-if", "level<0"], 1, "FAILED  level>=0.4: 0.5 (0."),
        (["--fail-if", f"{PLUGIN}.half<0.24"], 0, "passed  level.half<0.24: 0.25 (0."),
        (["--fail-if", "level.half<=0.26"], 1, "FAILED  level.half<=0.26"),
        (["--fail-if", "level.no_such>1"], 1, "FAILED  level.no_such>1: not measured, 0 of 5 clips"),
        (["--min-scored", "0.8"], 0, "passed  scored(level)<0.8: 0.8, 4 of 5 clips"),
        (["--min-scored", "0.81"], 1, "FAILED  scored(level)<0.81"),
    ],
)
def test_the_exit_code_is_that_of_the_conditions(clips, tmp_path, capsys, more, code, says):
    assert main(["score", str(clips), "--rewards", PLUGIN, "--out", str(tmp_path / "s.jsonl"), *more]) == code
    assert says in capsys.readouterr().out


def test_an_unknown_metric_and_a_wrong_share_stop_before_the_work(clips, tmp_path):
    for more in (["--fail-if", "levle>0"], ["--min-scored", "1.5"], ["--max-unreadable", "-1"]):
        with pytest.raises(SystemExit) as left:
            main(["score", str(clips), "--rewards", PLUGIN, "--out", str(tmp_path / "s.jsonl"), *more])
        assert left.value.code == 2 and not (tmp_path / "s.jsonl").exists()


def test_conditions_are_in_the_json(clips, tmp_path, capsys):
    out = ["--out", str(tmp_path / "s.jsonl"), "--json", "--fail-if", "level>0.6", "--min-scored", "0.9"]
    assert main(["score", str(clips), "--rewards", PLUGIN, *out]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"] and [one["status"] for one in found["conditions"]] == ["passed", "FAILED"]
    first = found["conditions"][0]
    assert (first["condition"], first["n"], first["eligible"]) == ("level>0.6", 4, 5)
    assert first["low"] < 0.5 < first["high"]


def test_nothing_scored_is_not_success(clips, tmp_path, capsys):
    command = [
        "score",
        str(clips),
        "--out",
        str(tmp_path / "s.jsonl"),
        "--rewards",
        "lip_loudness_correlation",
    ]
    assert main(command) == 1
    assert "no clip has a score; the first reason: " in capsys.readouterr().err


def test_a_total_of_one_clip_a_prompt_is_empty_with_advice_and_a_floor_shows(tmp_path, clips, capsys):
    (clips / "broken.wav").unlink()
    rows = [{"data_id": f"c{i}", "prompt": f"Rain {i}.", "video": f"clips/c{i}.wav"} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rubric = tmp_path / "r.yaml"
    command = [
        "score",
        str(tmp_path / "p.jsonl"),
        "--rubric",
        str(rubric),
        "--out",
        str(tmp_path / "s.jsonl"),
    ]
    rubric.write_text(f"items: {{'{PLUGIN}': {{weight: 1.0, floor: 0.3}}}}")
    assert main([*command, "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["rewards"]["total"]
    assert (total["mean"], total["n"], total["eligible"]) == (None, 0, 4)
    assert "set batch or none" in next(iter(total["reasons"]))
    assert main([*command, "--fail-if", "total<0"]) == 1
    for normalise, lowest in (("none", 0.2), ("batch", None)):
        rubric.write_text(
            f"items: {{'{PLUGIN}': {{weight: 1.0, normalise: {normalise}, floor: 0.5}}, "
            f"'{PLUGIN}.half': {{weight: 0.001, normalise: {normalise}}}}}"
        )
        assert main([*command[:-1], str(tmp_path / f"{normalise}.jsonl")]) == 0
        assert "clips beyond a floor: level 2" in capsys.readouterr().out
        found = [
            json.loads(line)["total"] for line in (tmp_path / f"{normalise}.jsonl").read_text().splitlines()
        ]
        assert [total["floored"] for total in found] == [["level"], ["level"], [], []]
        assert found[0]["value"] == found[1]["value"] <= min(total["value"] for total in found[2:])
        assert lowest is None or found[0]["value"] == pytest.approx(lowest, abs=0.1)
