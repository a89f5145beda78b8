"""The closing page: from two models to a page, resumed, with reasons, and without flattery."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from align_world import align_run, config, write_world
from hypothesis import given
from hypothesis import strategies as st
from model_cases import debug_model

from experiments.cli import main
from experiments.report import closing
from experiments.report.before_after import before_after
from experiments.report.closing import ClosingInputs, closing_report
from experiments.report.closing_curves import held_out_curves, held_out_series
from experiments.report.closing_page import change_of
from experiments.report.closing_run import ClosingOptions, closing_inputs, read_run
from experiments.report.examples import DRAWN, GAINS, LOSSES, gains_of, pick
from finetune.prompts import read_prompt_set
from finetune.recipe import RubricConfig, StopConfig
from pretrain.generation.config import GenerateConfig
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor
from pretrain.sampling import SamplerConfig
from rewards.base import unscored
from rewards.catalog import metric
from rewards.guardrails import GuardrailLimits
from rewards.metric import Metric
from rewards.types import Score

REWARD, JUDGE, PLUGIN = "snr_estimate_db", "picture_noise_judge", "test_closing_report:Brightness"
GENERATE = GenerateConfig(
    sampler=SamplerConfig(solver="euler", steps=2), num_frames=5, height=32, width=32, bf16=False
)


class Brightness:
    """A plug-in judge: mean of the picture; clips of every other prompt cannot be scored."""

    name = "brightness"
    title = "Brightness <of the picture>"

    def score(self, clips):
        found = [Score(float(clip.frames.mean()), text=f"seen {clip.name}") for clip in clips]
        return [
            score if int(clip.name[1:]) % 2 else unscored("too dark & still")
            for clip, score in zip(clips, found, strict=True)
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """With aligned/: another model for the same codec."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    described = json.loads((folder / "base" / "config.json").read_text())
    model = debug_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    facts = {"codec_id": described["codec_id"], "ema_updates": 1}
    write_model(folder / "aligned", "debug", flavor("debug"), {"ema": model.state_dict()}, facts)
    return folder


def inputs(world: Path, out: Path, **changes) -> ClosingInputs:
    made = ClosingInputs(
        base=world / "base",
        aligned=world / "aligned",
        codec=world / "codec",
        prompts=world / "prompts.jsonl",
        out=out,
        rewards={REWARD: {}},
        judges={JUDGE: {}, PLUGIN: {}},
        generate=GENERATE,
        limits=GuardrailLimits(max_lufs=-90.0),
        examples=6,
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "held_out_total": 0.0, "held_out/reward/snr_estimate_db": 1.0}\n'
        '{"step": 2, "held_out_total": 0.5, "held_out/judge/picture_noise_judge": 2.0, "loss": 1.0}\n'
    )
    closing_report(inputs(world, folder / "report", log=folder / "metrics.jsonl"))
    return folder / "report"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_page_has_clips_side_by_side_and_is_whole(made):
    html = (made / "report.html").read_text()
    page, result = Page(html), json.loads((made / "report.json").read_text())
    assert page.open == []
    videos = page.all("video")
    assert len(videos) == 2 * 6 and all("controls" in each for each in videos)
    assert all(str(each["src"]).startswith("data:video/mp4;base64,") for each in videos)
    assert page.all("script") == [] and "http" not in re.sub(r"base64,[^\"]*", "", html)
    shown = [name for names in result["examples"].values() for name in names]
    assert len(set(shown)) == 6 and [each["id"] for each in page.all("div") if "id" in each] == shown
    assert {why: len(names) for why, names in result["examples"].items()} == {DRAWN: 2, LOSSES: 2, GAINS: 2}
    assert html.count("<mark>") == 6 and "Brightness &lt;of the picture&gt;" in html
    assert len(page.all("img")) == 1 and "seen p" in html


def test_the_table_is_that_of_the_result_with_intervals(made):
    html, result = (made / "report.html").read_text(), json.loads((made / "report.json").read_text())
    roles = {name: each["role"] for name, each in result["metrics"].items()}
    assert roles == {REWARD: "reward", JUDGE: "judge", "brightness": "judge"}
    for name, each in result["metrics"].items():
        row = html[html.index(f"<code>{name}</code>") :].partition("</tr>")[0]
        for key in ("before", "after", "difference"):
            interval = each[key]
            assert f"{interval['mean']:.3f}<br><small>{interval['low']:.3f} to {interval['high']:.3f}" in row
        assert f"<td>{each['difference']['n']}</td>" in row and "codec" not in each and "closed" not in each
    assert [result["metrics"][name]["difference"]["n"] for name in (REWARD, "brightness")] == [10, 5]


def test_what_was_not_scored_says_why(made):
    result, html = json.loads((made / "report.json").read_text()), (made / "report.html").read_text()
    assert result["reasons"]["brightness"] == {side: {"too dark & still": 5} for side in ("before", "after")}
    assert "before: too dark &amp; still (5)" in html
    assert result["flagged"] == {"before": 10, "after": 10} and "flagged after: loudness_lufs" in html


def test_rows_of_both_sides_are_kept_and_pair(made):
    rows = [json.loads(line) for line in (made / "scores.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["before"] * 10 + ["after"] * 10
    sides = [[row["data_id"] for row in rows if row["source"] == side] for side in ("before", "after")]
    assert sides[0] == sides[1] == sorted(sides[0])
    assert all((made / row["path"]).is_file() for row in rows)
    first = [row["scores"][JUDGE]["value"] for row in rows if row["data_id"] == "p1"]
    result = json.loads((made / "report.json").read_text())
    assert first[0] != first[1] and str(made) not in json.dumps(result)


def test_the_same_model_on_both_sides_makes_the_same_clips(world, tmp_path):
    closing_report(inputs(world, tmp_path, aligned=world / "base", limit=3, examples=0))
    result = json.loads((tmp_path / "report.json").read_text())
    assert result["prompts"] == 3
    assert all(each["difference"]["mean"] == 0 for each in result["metrics"].values())
    assert (tmp_path / "before" / "p0.wav").read_bytes() == (tmp_path / "after" / "p0.wav").read_bytes()


def test_a_second_call_reuses_clips_and_scores_and_other_settings_do_not(world, tmp_path, monkeypatch):
    calls = []
    plain = closing.generate

    def counted(config, model, *rest, **more):
        calls.append(model.name)
        return plain(config, model, *rest, **more)

    monkeypatch.setattr(closing, "generate", counted)
    few = inputs(world, tmp_path, limit=2)
    page = closing_report(few).read_bytes()
    assert calls == ["base", "aligned"]
    monkeypatch.setattr(Brightness, "score", lambda *_: pytest.fail("scored again"))
    assert closing_report(few).read_bytes() == page and calls == ["base", "aligned"]
    closing_report(dataclasses.replace(few, judges={JUDGE: {}}))  # scores of other judges: clips stay
    assert calls == ["base", "aligned"]
    other = dataclasses.replace(GENERATE, seed=1)
    closing_report(dataclasses.replace(few, judges={JUDGE: {}}, generate=other))
    assert calls == ["base", "aligned"] * 2


def test_a_reward_that_scores_nothing_is_named_with_its_reason(world, tmp_path):
    voiceless = tmp_path / "prompts.jsonl"
    voiceless.write_text('{"prompt": "A man says <S>one<E>.", "data_id": "p1", "num_frames": 5}\n')
    report = tmp_path / "report"
    html = closing_report(
        inputs(world, report, prompts=voiceless, rewards={"sim_resemblyzer": {}})
    ).read_text()
    result = json.loads((report / "report.json").read_text())
    assert "reference" in result["not_measured"]["sim_resemblyzer"]
    assert f"not measured: {result['not_measured']['sim_resemblyzer']}" in html


def test_without_a_judge_the_page_says_so(world, tmp_path):
    html = closing_report(inputs(world, tmp_path, judges={}, limit=2)).read_text()
    assert "No judge measured these clips" in html


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rewards": {"snr_estimat_db": {}}},
            "unknown reward 'snr_estimat_db'; did you mean 'snr_estimate_db'",
        ),
        ({"rewards": {REWARD: {"wrong": 1}}}, "wrong"),
        ({"rewards": {"sync_mini": {}}}, "sync_mini"),
        ({"aligned": Path("nowhere")}, "nowhere/config.json: not found"),
        ({"prompts": Path("nowhere.jsonl")}, "nowhere.jsonl: no such file"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(world, tmp_path, monkeypatch, changes, says):
    monkeypatch.chdir(tmp_path)  # a checkout may have the networks that a demo fitted
    monkeypatch.setattr(closing, "generate", lambda *_: pytest.fail("clips were made"))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)):
        closing_report(inputs(world, tmp_path / "report", **changes))
    with pytest.raises(ValueError, match="a judge must stay apart"):
        inputs(world, tmp_path, judges={REWARD: {}})


def test_long_clips_are_linked_beside_the_page(made, monkeypatch):
    from experiments.report import closing_page

    left = [10]
    row = json.loads((made / "scores.jsonl").read_text().splitlines()[0])
    assert closing_page._video(made, row["path"], left) == row["path"] == "before/p0.mp4" and left == [10]


def scored(values, name="snr_estimate_db"):
    return [
        {"data_id": f"p{i:03d}", "prompt": f"p{i}", "scores": {name: None if v is None else float(v)}}
        for i, v in enumerate(values)
    ]


def test_a_gain_is_in_deviations_and_turned_where_lower_is_better():
    high = Metric("snr_estimate_db", "t", "snr_estimate_db")
    low = dataclasses.replace(high, lower_is_better=True)
    old, new = scored([0, 2, 4, None]), scored([1, 2, 2, 5])
    spread = math.sqrt(8 / 3)
    assert gains_of(old, new, [high])[:3] == pytest.approx([1 / spread, 0, -2 / spread])
    assert gains_of(old, new, [low])[:3] == pytest.approx([-1 / spread, 0, 2 / spread])
    assert gains_of(old, new, [high, low])[:3] == pytest.approx([0, 0, 0])
    assert math.isnan(gains_of(old, new, [high])[3]) and math.isnan(gains_of(old, new, [])[0])


@given(
    st.lists(st.one_of(st.floats(-3, 3), st.just(math.nan)), max_size=40),
    st.integers(0, 15),
    st.integers(0, 5),
)
def test_the_page_shows_as_many_losses_as_gains_and_draws_the_rest_blindly(gains, number, seed):
    chosen = pick(gains, number, seed)
    places = [place for each in chosen.values() for place in each]
    assert len(places) == len(set(places)) == min(number, len(gains))
    assert len(chosen[LOSSES]) == len(chosen[GAINS]) <= len(chosen[DRAWN])
    others = [gain for place, gain in enumerate(gains) if place not in places and math.isfinite(gain)]
    for gain in others:
        assert all(gains[place] <= gain for place in chosen[LOSSES])
        assert all(gains[place] >= gain for place in chosen[GAINS])
    assert pick(gains, number, seed) == chosen


def test_drawn_prompts_do_not_depend_on_their_gains():
    rank = [float(i) for i in range(30)]
    counts = dict.fromkeys(range(4, 26), 0)
    for seed in range(400):
        for place in pick(rank, 12, seed)[DRAWN]:
            counts[place] += 1
    # 4 of 22 each: binomial of mean 73, deviation 7.7
    assert min(counts.values()) > 40 and max(counts.values()) < 110


def test_without_real_clips_nothing_is_closed_and_nothing_beyond():
    found = before_after(scored([1, 2, 3]), scored([2, 3, 4]), None, GuardrailLimits())
    compared = found["metrics"]["snr_estimate_db"]
    assert compared["difference"] == {"mean": 1.0, "low": None, "high": None, "n": 3}
    with_codec = before_after(scored([1, 2, 3]), scored([2, 3, 4]), scored([5]), GuardrailLimits())
    gone = {"codec", "beyond_codec", "beyond_codec_before"}
    assert compared.keys() == with_codec["metrics"]["snr_estimate_db"].keys() - gone
    assert found["flagged"] == {"before": 0, "after": 0} and "codec_clips" not in found
    assert not any("codec" in key for guard in found["guardrails"].values() for key in guard)
    assert metric("snr_estimate_db").role == "watched" == compared["role"]
    judged = before_after(scored([1]), scored([2]), None, GuardrailLimits(), judged=["snr_estimate_db"])
    assert judged["metrics"]["snr_estimate_db"]["role"] == "judge"


@pytest.mark.parametrize(
    ("low", "high", "better", "says"),
    [(0.1, 0.2, "higher", "better"), (0.1, 0.2, "lower", "worse"), (-0.2, -0.1, "lower", "better"),
     (-0.1, 0.1, "higher", ""), (None, None, "higher", "")],
)  # fmt: skip
def test_a_change_is_one_whose_interval_leaves_zero_out(low, high, better, says):
    assert change_of({"difference": {"low": low, "high": high, "n": 6}, "better": better}) == says
    few = change_of({"difference": {"low": low, "high": high, "n": 5}, "better": better})
    assert few == "too few prompts"


def test_curves_are_of_held_out_rewards_and_judges(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert held_out_curves(log) is None
    rows = [
        {"step": 0, "held_out_total": 0.0, "held_out/reward/a": 1.0, "held_out/guardrail/motion": 1.0},
        {"step": 2, "held_out/judge/b": 2.0, "held_out/part/c": 3.0, "held_out/part/d": 1.0, "reward/a": 9.0},
        {"step": 4, "held_out_total": None, "held_out/reward/a": 2.0, "held_out/unscored/a": 0.0},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert held_out_series(log, {"c"}) == {
        "held_out_total": [(0, 0.0)],
        "held_out/reward/a": [(0, 1.0), (4, 2.0)],
        "held_out/judge/b": [(2, 2.0)],
        "held_out/part/c": [(2, 3.0)],
    }
    assert (held_out_curves(log) or b"").startswith(b"\x89PNG")


def finished(world: Path, folder: Path, watched=(JUDGE,)) -> Path:
    """The folder of an alignment that ended, without its training."""
    rubric = RubricConfig(audio={REWARD: 1.0}, sync={}, watched=watched)
    recipe = config(stop=StopConfig(prompts=4, patience=2), rubric=rubric, deployed=GENERATE.sampler)
    scorer = {"codec": str(world / "codec"), "weights": {REWARD: 1.0}, "options": {}, "limits": {}}
    run = dataclasses.replace(
        align_run(world, folder, recipe), scorer=("experiments.scoring.latents:AlignScorer", scorer)
    )
    run.save()
    (folder / "model").symlink_to(world / "aligned")
    return folder


def test_a_finished_alignment_is_compared_on_the_prompts_it_held_out(world, tmp_path, capsys):
    folder = finished(world, tmp_path / "align")
    given = ("--judges", PLUGIN, "--examples", "3")
    assert main(["align", "report", str(folder), *given]) == 0
    page = tmp_path / "align-report" / "report.html"
    assert capsys.readouterr().out.strip() == str(page) and len(Page(page.read_text()).all("video")) == 6
    result = json.loads((tmp_path / "align-report" / "report.json").read_text())
    run = read_run(folder)
    held_out = {row.data_id for row in read_prompt_set(run.prompts, run.config).held_out}
    rows = [
        json.loads(line) for line in (tmp_path / "align-report" / "scores.jsonl").read_text().splitlines()
    ]
    assert {row["data_id"] for row in rows} == held_out and len(held_out) == 4
    roles = {name: each["role"] for name, each in result["metrics"].items()}
    assert roles[REWARD] == "reward" and roles[JUDGE] == "judge" and "decided" in result["note"]
    made = closing_inputs(run, folder)
    assert made.generate.sampler == GENERATE.sampler and list(made.judges) == [JUDGE]
    voices = [json.loads(line) for line in made.prompts.read_text().splitlines()]
    assert {Path(path).is_file() for row in voices for path in row["spk_wavs"] if path} == {True}


def test_what_is_no_finished_alignment_is_refused_in_one_line(world, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resolved\.json: no such file; give the folder"):
        read_run(tmp_path)
    folder = finished(world, tmp_path / "align")
    (folder / "model").unlink()
    with pytest.raises(FileNotFoundError, match="the alignment is not finished"):
        read_run(folder)
    run = align_run(world, tmp_path / "other", config(stop=StopConfig(prompts=2)))
    with pytest.raises(ValueError, match="names no rewards to compare by"):
        closing_inputs(run, tmp_path / "other", ClosingOptions())
