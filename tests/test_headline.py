"""The numbers and curves that `dvc metrics` and `dvc plots` compare."""

import csv
import io
import json

from test_gates import MINI, gate, of_sets

from experiments.report.gates import Reports, check_gates
from experiments.report.headline import MOST_NUMBERS, headline, loss_table, reward_table


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_mini_recipe_has_few_numbers_each_with_a_name_of_its_own():
    numbers = headline(check_gates(MINI, of_sets()))
    assert len(numbers) == len(MINI) + 1 <= MOST_NUMBERS
    assert numbers["sync_mini"] == 0.9 and numbers["alignment_sync_judge_closed"] is None
    assert numbers["gates_passed"] == sum(r.status == "passed" for r in check_gates(MINI, of_sets()))
    json.dumps(numbers, allow_nan=False)


def test_a_second_gate_on_a_number_and_too_many_gates_add_nothing():
    twice = [gate(at_least=0.1), gate(at_least=0.2)]
    assert list(headline(check_gates(twice, of_sets()))) == ["gates_passed", "sync_mini"]
    many = [gate(name) for name in ("wer_pocketsphinx", "sync_mini", "sim_resemblyzer") for _ in range(30)]
    assert len(headline(check_gates(many, Reports({}, {})))) == 4


def test_losses_of_stages_follow_each_other(tmp_path):
    stages = {name: tmp_path / name for name in ("stage1", "stage2", "untrained")}
    logged = {
        "stage1": [{"step": 1, "loss_audio": 2.0}, {"step": 10, "loss_audio": 1.0, "loss_video": 3.0}],
        "stage2": [{"step": 5, "loss_video": 0.5}, {"step": 5, "validation/video/0.5": 9.0}],
    }
    for name, rows in logged.items():
        stages[name].mkdir()
        (stages[name] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [float(row["step"]) for row in rows_of(loss_table(stages))] == [1, 10, 15]
    assert [row["audio"] for row in rows_of(loss_table(stages))] == ["2.0", "1.0", ""]
    assert [row["video"] for row in rows_of(loss_table(stages))] == ["", "3.0", "0.5"]


def test_rewards_are_those_of_rounds_that_were_scored(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 0, "held_out_total": 0.0}\n{"step": 1}\n{"step": 2, "held_out_total": 0.25}\n')
    assert rows_of(reward_table(log)) == [
        {"round": "0", "held_out_total": "0.0"},
        {"round": "2", "held_out_total": "0.25"},
    ]
    assert rows_of(reward_table(tmp_path / "nothing aligned.jsonl")) == []
