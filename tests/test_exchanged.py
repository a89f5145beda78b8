"""The share of dialogues whose voices change places with their references."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.evaluate import EvaluateConfig, evaluate
from experiments.report.exchanged import voices_exchanged
from experiments.report.gates import Gate, Reports, check_gates
from experiments.scoring.sets import DIALOGUE_SET, EXCHANGED_SET, MAIN_SET, VOICES

GATE = {"metric": "voices_exchanged", "at_least": 0.8, "why": "the reference decides"}


def row(name, accuracy, prompt_set=DIALOGUE_SET):
    return {
        "prompt_set": prompt_set,
        "source": "generated",
        "data_id": name,
        "scores": {VOICES: accuracy},
        "parts": {},
        "texts": {},
        "reasons": {VOICES: "silence"} if accuracy is None else {},
    }


def groups(once, again):
    return {
        (name, "generated"): [row(f"a-{i}", value, name) for i, value in enumerate(values)]
        for name, values in ((DIALOGUE_SET, once), (EXCHANGED_SET, again))
    }


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_it_is_the_share_of_pairs_with_every_voice_right(pairs):
    found = voices_exchanged(groups(*zip(*pairs, strict=True)))
    assert found is not None and found.n == len(pairs)
    assert found.mean == pytest.approx(pairs.count((1.0, 1.0)) / len(pairs))
    assert math.isnan(found.low) or 0 <= found.low <= found.mean <= found.high <= 1
    assert math.isnan(found.low) == ((len(pairs) < 6 and found.mean in (0, 1)) or len(pairs) == 1)


def test_only_pairs_of_which_both_were_scored_count():
    found = voices_exchanged(groups([1.0, None, 1.0, 0.5], [1.0, 1.0, None]))
    assert found is not None and (found.mean, found.n, found.unscored) == (1.0, 1, 2)
    assert voices_exchanged({(DIALOGUE_SET, "generated"): [row("a-0", 1.0)]}) is None


def test_it_is_evaluated_under_the_exchanged_sets_key_and_can_be_a_gate(tmp_path):
    scores = tmp_path / "clips.jsonl"
    rows = [one for group in groups([1.0, 1.0], [1.0, 0.5]).values() for one in group]
    scores.write_text("".join(json.dumps(one) + "\n" for one in [*rows, row("b", 1.0, MAIN_SET)]))
    metrics = evaluate(EvaluateConfig(), scores, tmp_path / "demo.json")
    assert metrics["voices_exchanged_dialogue_exchanged"]["generated"]["mean"] == 0.5
    result = check_gates([Gate(**GATE, set=EXCHANGED_SET)], Reports(metrics, {}))[0]
    assert (result.status, result.mean, result.n) == ("failed", 0.5, 2)
    low = check_gates(
        [Gate(**GATE | {"at_least": 0.0}, value="low", set=EXCHANGED_SET)], Reports(metrics, {})
    )[0]
    assert low.status == "passed" and low.low == 0.0
    for metric in metrics.values():  # as of a single dialogue
        metric["generated"] |= {"mean": 1.0, "low": None, "high": None, "n": 1}
    one = check_gates([Gate(**GATE, value="low", set=EXCHANGED_SET)], Reports(metrics, {}))[0]
    assert (one.status, one.note) == ("not measured", "no interval: 1 clips that do not tell their spread")
    assert result.gate.title == "Exchanged references exchange the voices"


def test_it_is_no_number_of_another_set():
    with pytest.raises(ValueError, match="metric: unknown 'voices_exchanged'"):
        Gate(**GATE, set=DIALOGUE_SET)
