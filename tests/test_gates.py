"""Quality gates: closed forms, what cannot be checked, and the exit codes of `nava evaluate --gates`."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_before_after import NONE, PANEL, good
from test_report import interval, metrics

from experiments.cli import main
from experiments.recipes.load import load_recipe
from experiments.report.before_after import before_after
from experiments.report.evaluate import EvaluateConfig, evaluate, metrics_to_log
from experiments.report.gates import ALIGNMENT, Gate, Reports, all_passed, check_gates, read_reports
from experiments.report.metric_keys import reported_metrics
from experiments.report.page import AlignmentPart, Section, page
from experiments.report.pictures import before_after_dots
from experiments.report.simulated_gsb import simulated_gsb
from experiments.report.summary import print_summary
from experiments.scoring.sets import ScoreConfig

PARAMS = Path(__file__).parent.parent / "params.yaml"
MINI = load_recipe("mini", PARAMS).evaluate.gates


def gate(metric="sync_mini", prompt_set="pretrain_seen", **fields) -> Gate:
    return Gate(**{"metric": metric, "set": prompt_set, "at_least": 0.5, "why": "because", **fields})


def check(given_gate: Gate, reports: Reports):
    return check_gates([given_gate], reports)[0]


def statuses(reports, gates=MINI):
    return {(r.gate.metric, r.gate.set): r.status for r in check_gates(gates, reports)}


def of_sets(**changes):
    """Numbers of the prompt sets that pass the mini recipe's gates, unless changed."""
    found = metrics(**changes)
    return Reports({**found, "sync_mini": {"generated": interval(0.9)}}, {})


class Brightness:
    """A plug-in reward."""

    name, title, lower_is_better = "brightness", "Brightness <of the frames>", True

    def score(self, clips):
        raise NotImplementedError


PLUGIN = "test_gates:Brightness"


def test_a_reward_of_the_users_own_is_reported_everywhere_by_itself(tmp_path, capsys):
    score = ScoreConfig(rewards=("identity_colour_edge", PLUGIN), align_judges=())
    groups = [
        ("pretrain_seen", "codec", 1),
        ("pretrain_seen", "generated", 3),
        ("align_held_out", "generated", 3),
    ]
    groups.append(("align_held_out", "aligned", 2))
    rows = [
        {
            **{"prompt_set": prompt_set, "source": source, "data_id": f"c{i}", "prompt": f"p{i}"},
            **{"scores": {"identity_colour_edge": 0.9, "brightness": value}, "parts": {}},
        }
        for prompt_set, source, value in groups
        for i in range(6)
    ]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known, files = reported_metrics(score), (tmp_path / "demo.json", tmp_path / "alignment.json")
    evaluate(EvaluateConfig(), tmp_path / "clips.jsonl", *files, rewarded={"brightness": -1}, known=known)
    reports = read_reports(*files)
    assert reports.metrics["brightness"]["generated"]["mean"] == 3.0
    compared = reports.alignment["metrics"]["brightness"]
    assert (compared["better"], compared["role"], compared["difference"]["mean"]) == ("lower", "reward", -1.0)
    logged = metrics_to_log(reports.metrics, reports.alignment)
    assert logged["generated/brightness"] == 3.0 and logged["alignment/brightness/difference"] == -1.0
    assert logged["codec/identity_colour_edge"] == 0.9
    assert [logged[f"generated/brightness/{part}"] for part in ("low", "high", "n")] == [3.0, 3.0, 6]
    print_summary(reports)
    assert capsys.readouterr().out.count("brightness") == 2
    limits = [
        gate(PLUGIN, at_least=None, at_most=limit, statistic=statistic, prompt_set=prompt_set)
        for limit, statistic, prompt_set in ((3, "generated", "pretrain_seen"), (-2, "difference", ALIGNMENT))
    ]
    results = check_gates(limits, reports)
    assert [result.status for result in results] == ["passed", "failed"]
    logged = metrics_to_log(reports.metrics, reports.alignment, results)
    assert (logged["gates/brightness"], logged["gates/alignment_brightness_difference"]) == (1.0, 0.0)
    assert logged["alignment/guardrails/flagged_after"] == reports.alignment["flagged"]["after"]
    assert logged["alignment/guardrails/motion/flagged_before"] == 0.0
    nothing = Section("First", "about", [])
    part = AlignmentPart(reports.alignment, nothing, b"png", None)
    html = page(reports.metrics, results, [nothing], None, {}, part, known)
    assert html.count("Brightness &lt;of the frames&gt;") == 4  # two gates, the table, before and after
    assert before_after_dots(reports.alignment).startswith(b"\x89PNG")


def test_the_mini_recipes_gates_on_prompt_sets():
    sets = [gate for gate in MINI if gate.set != ALIGNMENT]
    passing = of_sets()
    passing.metrics["wer_pocketsphinx_heldout_pairs"]["generated"] = interval(0.4, 48)  # type: ignore[index]
    dialogue = {
        "wer_pocketsphinx_dialogue": 0.34,
        "voice_accuracy_resemblyzer_dialogue": 0.76,
        "voices_exchanged_dialogue_exchanged": 0.81,
    }
    for name, mean in dialogue.items():
        passing.metrics[name] = {"generated": interval(mean, 48)}  # type: ignore[index]
    assert set(statuses(passing, sets).values()) == {"passed"}
    for changed, metric in (
        ({"wer": 0.301}, "wer_pocketsphinx"),
        ({"voice": 0.79}, "voice_accuracy_resemblyzer"),
        ({"lips": 0.5}, "lip_loudness_correlation"),
        ({"lag": -1.1}, "lip_loudness_lag_frames"),
    ):
        assert statuses(of_sets(**changed))[metric, "pretrain_seen"] == "failed"
    assert statuses(of_sets(wins=0.69))["voice_accuracy_resemblyzer", "pretrain_disagree"] == "failed"
    assert statuses(of_sets())["wer_pocketsphinx", "pretrain_heldout_pairs"] == "failed"  # 0.6


def test_too_few_clips_or_nothing_measured_is_no_pass():
    few = check(gate("wer_pocketsphinx", at_most=0.3, at_least=None, min_n=200), of_sets(n=50))
    assert few.status == "not measured" and few.note == "50 of at least 200 clips" and few.mean == 0.2
    nothing = check_gates(MINI, Reports({}, {}))
    assert {result.status for result in nothing} == {"not measured"} and not all_passed(nothing)
    assert {result.note for result in nothing} == {"no generated clips were scored", "nothing was aligned"}


def test_a_codec_of_one_clip_has_no_interval_that_nothing_is_beyond():
    before, after, codec = good()
    found = before_after(before, after, codec[:1], NONE)
    limit = gate("metrics_beyond_codec", ALIGNMENT, statistic="driven", at_least=None, at_most=0)
    result = check(limit, Reports({}, found))
    assert (result.status, result.mean) == ("not measured", 0) and "sync_judge" in result.note
    assert check(limit, Reports({}, before_after(before, after, codec, NONE))).status == "passed"


def test_the_mini_recipes_gates_on_alignment(tmp_path):
    gates = [gate for gate in MINI if gate.set == ALIGNMENT]

    def aligned(voted=True, **changes):
        before, after, codec = good(**changes)
        raters = simulated_gsb(PANEL, before, after, tmp_path / "votes.jsonl", {}) if voted else {}
        found = before_after(before, after, codec, NONE)
        return statuses(Reports({}, {**found, "raters": raters}), gates)

    def others(found, *names):
        return {status for (name, _), status in found.items() if name not in names}

    assert set(aligned().values()) == {"passed"}
    worse = aligned(closed=-0.3)
    clear = "intelligibility_pocketsphinx_judge"
    for name in (clear, "wer_pocketsphinx_judge", "sync_judge", "simulated_gsb"):
        assert worse[name, ALIGNMENT] == "failed"
    hacked = aligned(closed=1.1)  # better than real clips through the codec
    assert hacked["metrics_beyond_codec", ALIGNMENT] == "failed"
    voice = aligned(sim=-0.03)
    assert voice["sim_resemblyzer", ALIGNMENT] == "failed" and others(voice, "sim_resemblyzer") == {"passed"}
    assert aligned(sim=0.01)["sim_resemblyzer", ALIGNMENT] == "passed"
    flagged = aligned(after_flags=("motion 0 < 0.0001",))
    assert flagged["guardrails", ALIGNMENT] == "failed" and others(flagged, "guardrails") == {"passed"}
    assert aligned(voted=False)["simulated_gsb", ALIGNMENT] == "not measured"


def test_counts_name_what_they_counted():
    before, after, codec = good(closed=1.1, after_flags=("motion 0 < 0.0001",))
    reports = Reports({}, before_after(before, after, codec, NONE))
    hacks, guards = (
        check(gate(metric, ALIGNMENT, statistic=statistic, at_least=None, at_most=0), reports)
        for metric, statistic in (("metrics_beyond_codec", "driven"), ("guardrails", "worse"))
    )
    assert "sync_judge" in hacks.note and hacks.mean == len(hacks.note.split(", "))
    assert (guards.mean, guards.note, guards.n) == (1, "motion", 40) and guards.low is None


def test_a_gap_that_is_not_measurable_is_not_measured():
    same, _, _ = good()
    reports = Reports({}, before_after(same, same, same, NONE))
    result = check(gate("sync_judge", ALIGNMENT, statistic="closed", value="low"), reports)
    assert result.status == "not measured" and "not measurable" in result.note


@given(
    st.floats(-2, 2),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(-2, 2)),
    st.one_of(st.none(), st.floats(-2, 2)),
    st.sampled_from(["mean", "low", "high"]),
)
def test_a_gate_passes_exactly_within_its_limits(mean, width, low, high, value):
    if low is high is None or (low is not None and high is not None and low > high):
        return
    found = {"mean": mean, "low": mean - width, "high": mean + width, "n": 3}
    made = gate(at_least=low, at_most=high, value=value)
    inside = (low is None or found[value] >= low) and (high is None or found[value] <= high)
    result = check(made, Reports({"sync_mini": {"generated": found}}, {}))
    assert result.status == ("passed" if inside else "failed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "sync_mni"}, r"gates\[0\].*'sync_mni'; did you mean 'sync_mini'"),
        ({"set": "pretrain_sen"}, r"set: unknown 'pretrain_sen'; did you mean 'pretrain_seen'"),
        ({"statistic": "closed"}, "statistic: unknown 'closed'; did you mean 'codec'"),
        ({"set": "alignment"}, "statistic: unknown 'generated'; did you mean"),
        ({"metric": "guardrails"}, "metric: unknown 'guardrails'"),
        ({"at_lest": 1}, "at_lest: unknown key; did you mean 'at_least'"),
        ({"at_least": None}, "expected at_least, at_most or both"),
        ({"at_most": 0.1}, "expected at_least, at_most or both in order"),
        ({"at_least": "much"}, "at_least: expected"),
        ({"value": "middle"}, "value: unknown value 'middle'"),
        ({"metric": "guardrails", "set": "alignment", "statistic": "worse", "value": "low"}, "is a count"),
    ],
)
def test_a_gate_that_cannot_be_checked_is_refused(fields, message):
    values = {"metric": "sync_mini", "set": "pretrain_seen", "at_least": 0.5, "why": "because", **fields}
    with pytest.raises(ValueError, match=message):
        load_recipe("mini", None, [f"evaluate.gates={json.dumps([values])}"])


def test_a_gate_without_a_reason_is_refused():
    with pytest.raises(ValueError, match="why"):
        load_recipe("mini", None, ["evaluate.gates=[{metric: sync_mini, set: pretrain_seen, at_least: 1}]"])


def nava(*arguments) -> int:
    try:
        return main(["evaluate", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def test_exit_codes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_it = ("mini", "--gates", "--reports", str(tmp_path))
    limit = "[{metric: wer_pocketsphinx, set: pretrain_seen, at_most: 0.3, why: words}]"
    setting = ("--set", f"evaluate.gates={limit}")
    assert nava(*check_it) == 2 and "evaluate.gates: the recipe has none" in capsys.readouterr().err
    assert nava(*check_it, *setting) == 2 and "run `nava evaluate` first" in capsys.readouterr().err
    (tmp_path / "demo.json").write_text(json.dumps(metrics(wer=0.2)))
    assert nava(*check_it, *setting) == 0 and "passed" in capsys.readouterr().out
    (tmp_path / "demo.json").write_text(json.dumps(metrics(wer=0.4)))
    assert nava(*check_it, *setting) == 3 and "failed" in capsys.readouterr().out
    assert nava(*check_it, "--json", *setting) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False and found["gates"][0]["status"] == "failed"
    assert (found["gates"][0]["mean"], found["gates"][0]["why"]) == (0.4, "words")
    (tmp_path / "demo.json").write_text("{}")
    assert nava(*check_it, *setting) == 3 and "not measured" in capsys.readouterr().out
    assert nava(*check_it, "--set", limit.replace("[", "evaluate.gates=[").replace("seen", "sen")) == 2
    assert "did you mean 'pretrain_seen'" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [tmp_path / "demo.json"]  # nothing was scored
