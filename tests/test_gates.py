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
from experiments.report.evaluate import EvaluateConfig
from experiments.report.gates import ALIGNMENT, Gate, Reports, all_passed, check_gates
from experiments.report.simulated_gsb import simulated_gsb

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


def test_the_mini_recipes_gates_on_prompt_sets():
    sets = [gate for gate in MINI if gate.set != ALIGNMENT]
    passing = of_sets()
    passing.metrics["wer_pocketsphinx_heldout_pairs"]["generated"] = interval(0.4, 48)  # type: ignore[index]
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
    for name in ("wer_pocketsphinx_judge", "sync_judge", "simulated_gsb"):
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
        ({"at_lest": 1}, "at_lest: unknown option; did you mean 'at_least'"),
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
        EvaluateConfig(gates=({"metric": "sync_mini", "set": "pretrain_seen", "at_least": 0.5},))  # type: ignore[arg-type]


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
