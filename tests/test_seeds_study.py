import dataclasses
import json

import pytest
from test_before_after import NONE, good

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.recipes.load import load_recipe
from experiments.report.before_after import before_after
from experiments.report.gates import Gate
from experiments.studies.page import render
from experiments.studies.seeds import gate_results, mean_rows, study_seeds
from rewards.guardrails import BOUNDS


def row(name: str, sync: float | None, errors: float = 0.0):
    return {
        "data_id": name,
        "prompt": f"p {name}",
        "scores": {"sync_judge": sync, "wer_pocketsphinx": errors},
        "parts": {"wer_pocketsphinx": {"errors": errors, "words": 1.0}},
        "guardrails": {"motion": 0.1},
        "flags": [],
    }


def test_a_prompt_counts_once_with_the_mean_over_seeds():
    pooled = mean_rows(
        [[row("a", 1.0, 1.0), row("b", 0.0)], [row("b", 0.5), row("a", 2.0)], [row("a", 3.0), row("b", None)]]
    )
    assert [found["data_id"] for found in pooled] == ["a", "b"]
    assert pooled[0]["scores"]["sync_judge"] == 2.0 and pooled[1]["scores"]["sync_judge"] == 0.25
    assert pooled[0]["parts"]["wer_pocketsphinx"] == pytest.approx({"errors": 1 / 3, "words": 1.0})


def test_one_seed_is_itself():
    rows = [row("a", 1.0), row("b", None)]
    shares = dict.fromkeys(("", *BOUNDS), 0.0)
    assert mean_rows([rows]) == [
        {**found, "parts": {"sync_judge": {}, **found["parts"]}, "flagged_shares": shares} for found in rows
    ]


def test_flagged_clips_of_several_seeds_are_their_mean():
    def clips(*flagged):
        beyond = {"flags": ["loudness_dbfs -50 < -40", "loudness_dbfs -50 < -45"]}
        return [{**row(f"{i:02d}", 1.0), **(beyond if i in flagged else {})} for i in range(9)]

    before, gate = (
        clips(0, 1),
        Gate(metric="guardrails", set="alignment", statistic="worse", at_most=0, why="-"),
    )
    for seeds, expected, status in (
        ([clips(0, 1), clips(3, 4), clips(6, 7)], 2, "passed"),
        ([clips(0, 1), clips(3, 4), clips(5, 6, 7)], 7 / 3, "failed"),
    ):
        found = before_after(before, mean_rows(seeds), None, NONE)
        assert found["flagged"] == {"before": 2, "after": pytest.approx(expected)}
        assert found["guardrails"]["loudness_dbfs"]["flagged_after"] == pytest.approx(expected)
        assert found["guardrails"]["motion"]["flagged_after"] == 0
        assert [result["status"] for result in gate_results([gate], found)] == [status]


def test_seeds_with_other_prompts_are_refused():
    with pytest.raises(ValueError, match="not all of them answer the same prompts"):
        mean_rows([[row("a", 1.0)], [row("b", 1.0)]])


def test_the_page_has_the_gates_each_seed_and_every_guardrail():
    found = {**before_after(*good(), NONE), "raters": {}}
    gates = [
        Gate(metric="sync_judge", set="alignment", statistic="closed", at_least=limit, why="sync")
        for limit in (0.1, 0.9)
    ]
    gates.append(Gate(metric="simulated_gsb", set="alignment", statistic="overall", at_least=0, why="votes"))
    gates.append(Gate(metric="sync_mini", set="pretrain_seen", at_least=0, why="not of alignment"))
    study = {
        "study": "seeds",
        "seeds": 2,
        "together": found,
        "gates": gate_results(gates, found),
        "each": {str(seed): {"align_seconds": 240.0 + seed, **found} for seed in range(2)},
    }
    text = render(json.loads(json.dumps(study)))
    assert "SIMULATED" in text and "| 1 | 241 |" in text
    assert all(
        f"| {name} |" in text for name in (*found["guardrails"], "sync_judge", "wer_pocketsphinx_judge")
    )
    assert f"Clips beyond a limit, of {found['prompts']}: before alignment" in text
    results = [line for line in text.splitlines() if ", closed | " in line or ", overall | " in line]
    assert [line.split("| ")[-1] for line in results] == ["passed |", "failed |", "not measured |"]
    assert "sync_mini, generated" not in text


def test_nothing_starts_without_clips_of_before(tmp_path):
    job = StageJob(recipe=load_recipe("mini"), layout=Layout(out=tmp_path))
    with pytest.raises(FileNotFoundError, match="scores"):
        study_seeds(job, 2)
    with pytest.raises(ValueError, match="--seeds: expected at least 1, got 0"):
        study_seeds(dataclasses.replace(job), 0)
    assert not list(tmp_path.iterdir())
