"""The study's arithmetic by hand, its plan, and that what is finished is kept."""

import dataclasses
import json
import math
import signal
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from titan_world import write_latents

from experiments.layout import Layout
from experiments.scoring.sets import ScoreConfig
from experiments.scoring.statistics import Draws, Table, difference_over_seeds, mean_over_seeds
from experiments.studies.harness import Progress, Run, mark_of
from experiments.studies.page import render
from experiments.studies.paradigms.config import FLOPS, PARADIGMS, STEPS, StudyConfig
from experiments.studies.paradigms.flops import matched_steps, step_flops, steps_of, total_flops
from experiments.studies.paradigms.plan import StudyPlan, plan_study
from experiments.studies.paradigms.run import (
    StudyRecipe,
    draw,
    metrics_with,
    run_of,
    study_paradigms,
    tabulate,
)
from experiments.studies.scores import added_metrics, tabulated
from experiments.studies.workers import core_shares, run_all
from pretrain.generation.config import GenerateConfig
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape
from pretrain.recipe import PretrainConfig
from pretrain.schedule import StageConfig
from rewards.types import Score

SMALL = StudyConfig(seeds=2, steps_factor=0.1, num_prompts=3, score_after=("stage1",), resamples=200)


def one_stage(steps: int = 100) -> PretrainConfig:
    stage = StageConfig(
        name="stage1", steps=steps, warmup_steps=20, tasks={"T2A": 1.0, "T2AV": 1.0, "TI2AV": 1.0}
    )
    return PretrainConfig(stages={"stage1": stage}, global_batch_size=4)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def plan(latents) -> StudyPlan:
    return plan_study(SMALL, one_stage(), latents)


def table(*rows: list[float]) -> Table:
    return Table.of([[(value, 1.0) for value in row] for row in rows])


def test_mean_is_of_seeds_and_ratios_are_of_sums():
    found = Table.of([[(1, 2), (0, 2), None], [(3, 4), None, (0, 2)]])
    assert found.per_seed == [0.25, 0.5]
    interval = mean_over_seeds(found, Draws.nested(2, 3, 500))
    assert interval.mean == 0.375 and interval.n == 4 and interval.unscored == 2
    assert 0 <= interval.low <= 0.375 <= interval.high <= 0.75


def test_seeds_add_to_the_width_that_clips_alone_give():
    clips = [0.0, 1.0] * 20
    alike, unlike = table(clips, clips, clips), table([0.0] * 40, clips, [1.0] * 40)
    draws = Draws.nested(3, 40, 2000)
    narrow, wide = mean_over_seeds(alike, draws), mean_over_seeds(unlike, draws)
    assert narrow.mean == wide.mean == 0.5
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(120), rel=0.15)
    assert wide.low < 0.1 and wide.high > 0.9


def test_differences_are_paired():
    """Seeds and prompts that are hard for both make no difference uncertain."""
    hard = np.random.default_rng(0).normal(size=(3, 30))
    ours, theirs = table(*(hard + 0.1).tolist()), table(*hard.tolist())
    found = difference_over_seeds(ours, theirs, Draws.nested(3, 30, 300))
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-3, 3))
def test_intervals_move_with_their_values(row, shift):
    draws = Draws.nested(2, len(row), 50)
    plain, moved = (mean_over_seeds(table(*([[v + s for v in row]] * 2)), draws) for s in (0.0, shift))
    assert plain.low - 1e-9 <= plain.mean <= plain.high + 1e-9 or len(row) < 4
    assert (moved.mean - plain.mean, moved.low - plain.low) == pytest.approx((shift, shift), abs=1e-9)


def test_nothing_scored_is_no_number():
    found = mean_over_seeds(Table.of([[None, None]]), Draws.nested(1, 2, 10))
    assert found.as_json() == {"mean": None, "low": None, "high": None, "n": 0}


def test_sync_is_measured_by_the_judge_or_not_at_all(tmp_path):
    scores = {
        "sync_mini": [Score(0.3, parts={"sync_c_mini": 4.0, "sync_d_mini": 7.0}), Score(math.nan, "no face")]
    }
    metrics = {name: metric for name, metric in metrics_with(tmp_path).items() if metric.scorer in scores}
    found = tabulated(metrics, scores)
    assert found["metrics"]["sync_d_mini"] == [[7.0, 1.0], None] and found["metrics"]["sync_mini"][0] == [
        0.3,
        1.0,
    ]
    assert found["reasons"]["sync_mini"] == ["", "no face"]
    assert "sync_mini" not in metrics_with(None) and "sim_resemblyzer" in metrics_with(None)


def test_a_reward_that_the_recipe_adds_is_measured_too():
    usual = ScoreConfig()
    added = ScoreConfig(rewards=(*usual.rewards, "identity_colour_edge"))
    assert added_metrics(usual) == {} and list(added_metrics(added)) == ["identity_colour_edge"]


def test_batches_are_counted_as_they_are(latents):
    stage = StageConfig(name="stage1", steps=9, tasks={"TI2AV": 1.0})
    config = PretrainConfig(stages={"stage1": stage}, global_batch_size=4)
    sizes = steps_of(config, "stage1", latents, 9)
    assert len(sizes) == 9 and {clips for _, clips in sizes} == {4}
    assert {(shape.video, shape.audio, shape.video_levels) for shape, _ in sizes} <= {(2, 6, 2), (3, 9, 3)}
    assert all(6 <= shape.context <= 8 for shape, _ in sizes)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 60), st.sampled_from(["dual_tower", "unified"]))
def test_matched_steps_cost_what_the_reference_costs(count, name):
    shapes = [(ClipShape(video=28 * (i % 3 > 0), audio=26, context=20 + i % 5), 8) for i in range(60)]
    args, reference = flavor(name), flavor("mini")
    steps = matched_steps(args, reference, shapes, count)
    budget, most = total_flops(reference, shapes[:count]), max(step_flops(args, shape) for shape in shapes)
    if steps <= len(shapes):
        assert abs(total_flops(args, shapes[:steps]) - budget) <= most / 2 + 1 or steps == 1
    assert matched_steps(reference, reference, shapes, count) == count


def test_plan_holds_data_equal_and_matches_flops(plan):
    assert len(plan.trainings) == 2 * 5 and plan.served == ("nava",)
    equal = [training for training in plan.trainings if training.budget == STEPS]
    assert {training.config.stages["stage1"].steps for training in equal} == {10}
    assert [training.config.seed for training in equal] == [0, 0, 0, 1, 1, 1]
    assert {training.config.flavor for training in equal} == set(PARADIGMS.values())
    for paradigm in PARADIGMS:
        spent, budget = (sum(plan.flops[FLOPS][name].values()) for name in (paradigm, "nava"))
        assert spent == pytest.approx(budget, rel=0.15)  # within a step of ten
    longer = next(
        t.config.stages["stage1"] for t in plan.trainings if (t.paradigm, t.budget) == ("dual_tower", FLOPS)
    )
    assert longer.steps > 10 and longer.warmup_steps == round(20 * longer.steps / 100)


def test_a_folder_belongs_to_its_settings_and_data(plan, tmp_path):
    training = plan.trainings[0]
    other = dataclasses.replace(training, config=dataclasses.replace(training.config, ema_decay=0.5))

    def name(training, codec):
        return run_of(training, tmp_path, {"latents": "l", "codec": codec, "judge": "j"}, "m").folder.name

    assert len({name(training, "a"), name(training, "b"), name(other, "a"), name(training, "a")}) == 3
    assert mark_of({"a": 1, "b": 2}) == mark_of({"b": 2, "a": 1})


def results(plan: StudyPlan) -> dict[str, dict]:
    """NAVA says 0.8 in every clip, the others 0.2; one clip of each is silent."""
    found = {}
    for training in plan.trainings:
        value = 0.8 if training.paradigm == "nava" else 0.2
        metrics = {
            "wer_pocketsphinx": [[1 - value, 1.0], [1 - value, 1.0], None],
            "sim_resemblyzer": [[value, 1.0]] * 3,
        }
        scores = {
            "data_ids": ["a", "b", "c"],
            "metrics": metrics,
            "reasons": {"wer_pocketsphinx": ["", "", "silent"]},
        }
        found[training.label] = {
            "scores": {"stage1": scores},
            "validation": {"stage1": {"validation/audio": value}},
            "seconds": 1.0,
        }
    return found


def test_tables_page_and_picture_of_known_results(plan, tmp_path):
    study = {
        "study": "paradigms",
        "facts": {},
        "config": dataclasses.asdict(SMALL),
        "judge": "",
        **tabulate(SMALL, plan, results(plan)),
    }
    entry = study["budgets"][FLOPS]["unified"]
    assert entry["metrics"]["sim_resemblyzer"]["mean"] == 0.2 and entry["metrics"]["sim_resemblyzer"][
        "seeds"
    ] == [0.2, 0.2]
    assert (
        entry["differences"]["wer_pocketsphinx"]["low"] == pytest.approx(0.6) and entry["served_by"] == FLOPS
    )
    assert study["budgets"][FLOPS]["nava"]["served_by"] == STEPS
    assert study["budgets"][STEPS]["nava"]["curve"][0]["validation"] == {"validation/audio": 0.8}
    assert study["unscored"] == {"wer_pocketsphinx": {"silent": 10}} and study["clips"] == {
        "seeds": 2,
        "prompts": 3,
        "distinct": 3,
    }
    text = render(study)
    assert "unified against NAVA, sim_resemblyzer: -0.600 [-0.600, -0.600], worse" in text
    assert "**0.200 [0.200, 0.200]**" in text and "| nava * |" in text and "silent: 10" in text
    draw(study, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_hard_about_a_prompt_does_not_average_out_over_trainings(plan):
    """Both seeds answer the same prompts, of which four each ask for the same: eight are known, no more."""
    found, clips = results(plan), 32
    said = [f"word {index % 8}" for index in range(clips)]
    moved = np.random.default_rng(0).normal(size=8)
    for training in plan.trainings:
        values = moved if training.paradigm == "unified" else np.zeros(8)
        scores = found[training.label]["scores"]["stage1"]
        scores["metrics"] = {"sim_resemblyzer": [[values[index % 8], 1.0] for index in range(clips)]}
        scores["data_ids"] = [f"p{index}" for index in range(clips)]
    config = dataclasses.replace(SMALL, resamples=2000)
    study = tabulate(config, plan, found, said)
    entry = study["budgets"][STEPS]["unified"]
    half = 1.96 * moved.std() / 8**0.5
    for interval in (entry["differences"]["sim_resemblyzer"], entry["metrics"]["sim_resemblyzer"]):
        assert interval["high"] - interval["low"] == pytest.approx(2 * half, rel=0.12)
    assert entry["differences"]["sim_resemblyzer"]["n"] == 2  # trainings
    assert entry["metrics"]["sim_resemblyzer"]["n"] == 2 * clips
    assert study["clips"] == {"seeds": 2, "prompts": clips, "distinct": 8}


def test_of_one_training_each_nothing_is_better_or_worse(plan):
    one = dataclasses.replace(plan, trainings=[each for each in plan.trainings if each.config.seed == 0])
    entry = tabulate(SMALL, one, results(one))["budgets"][STEPS]["unified"]
    assert entry["differences"]["sim_resemblyzer"]["verdict"] == "one seed"


def test_scores_of_other_prompts_are_refused(plan):
    found = results(plan)
    found["nava-equal_steps-seed1"]["scores"]["stage1"]["data_ids"] = ["x", "y", "z"]
    with pytest.raises(ValueError, match="different prompts"):
        tabulate(SMALL, plan, found)


def test_missing_latents_and_a_wrong_stage_are_one_line(tmp_path):
    recipe = StudyRecipe(StudyConfig(), one_stage(), GenerateConfig())
    with pytest.raises(FileNotFoundError, match="latents: no such file or folder; run `nava demo`"):
        study_paradigms(recipe, Layout(out=tmp_path), tmp_path / "judge")
    assert not (tmp_path / "study").exists()
    with pytest.raises(ValueError, match="steps_factor must be above 0"):
        StudyConfig(steps_factor=0.0)


WORKER = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file:
    file.write("x")
if "seed1" in folder.name and not (folder / "may_end").exists():
    print("nava: out of luck", file=sys.stderr)
    sys.exit(2)
(folder / "result-m.json").write_text(json.dumps({}))
"""


def result_writer(run: Run) -> Callable[[], object]:
    return partial(run.result.write_text, "{}")


@pytest.fixture
def runs(plan, tmp_path, monkeypatch) -> list[Run]:
    """Runs whose process only writes its result; that of seed 1 fails until it finds `may_end`."""
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(
        "experiments.studies.workers.worker_command",
        lambda run: [sys.executable, str(tmp_path / "worker.py"), str(run.folder)],
    )
    monkeypatch.setattr("experiments.studies.workers.POLL_S", 0.02)
    inputs = {"latents": "l", "codec": "c"}
    made = [run_of(training, tmp_path, inputs, "m") for training in plan.trainings[4:7]]
    for run in made:
        run.folder.mkdir()
    return made


def starts(run: Run) -> int:
    path = run.folder / "starts"
    return len(path.read_text()) if path.is_file() else 0


def test_finished_trainings_are_kept_and_a_failed_one_is_named_and_made_again(runs):
    with pytest.raises(ValueError, match=r"seed1 ended with exit code 2: out of luck; see .*log\.txt"):
        run_all("study", runs, result_writer, core_shares(1))
    assert [run.finished for run in runs] == [True, False, False] and [starts(run) for run in runs] == [
        1,
        1,
        0,
    ]
    for run in runs:
        (run.folder / "may_end").touch()
    run_all("study", runs, result_writer, core_shares(2))
    assert all(run.finished for run in runs) and [starts(run) for run in runs] == [1, 2, 1]
    run_all("study", runs, result_writer, core_shares(2))
    assert [starts(run) for run in runs] == [1, 2, 1]
    rescored = [dataclasses.replace(run, mark="other") for run in runs]
    assert not any(run.finished for run in rescored)


def test_a_process_does_the_work_of_its_run_on_its_cores(tmp_path):
    run = Run("one", tmp_path / "one", "m")
    run_all("study", [run], result_writer, core_shares(1))
    assert run.finished and [path.name for path in sorted(run.folder.iterdir())] == [
        "log.txt",
        "result-m.json",
    ]


def test_sigterm_stops_the_study_with_its_own_line(runs, monkeypatch):
    monkeypatch.setattr(
        "experiments.studies.harness.Progress.report",
        lambda self, running, force=False: signal.raise_signal(signal.SIGTERM) if running else None,
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run_all("study", runs, result_writer, core_shares(1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_counts_logged_steps_and_finished_trainings(runs):
    first, second, _ = runs
    (trained, steps) = first.stages["stage1"]
    (first.folder / "stage1").mkdir()
    (first.folder / "stage1" / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    second.result.write_text("{}")
    progress = Progress("study", runs)
    assert trained == pytest.approx(0.85 * first.work)
    expected = trained / steps + second.work
    assert progress.done() == pytest.approx(expected) == progress.done()


def test_progress_tells_runs_of_one_label_apart(tmp_path, capsys):
    runs = [Run("same", tmp_path / name, "m", {"stage1": (1.0, 10)}) for name in ("a", "b")]
    progress = Progress("study", runs)
    for run, step in zip(runs, (3, 7), strict=True):
        (run.folder / "stage1").mkdir(parents=True)
        (run.folder / "stage1" / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
    progress.report(runs, force=True)
    assert "same stage1 3/10; same stage1 7/10" in capsys.readouterr().err


def test_progress_counts_the_samplings_of_a_run_that_are_scored(tmp_path, capsys):
    scores = tuple(tmp_path / f"scores-{number}.json" for number in range(4))
    trained = Run("trained", tmp_path / "trained", "m", {"stage1": (1.0, 10)}, 2.0, scores[:1])
    given = Run("given", tmp_path / "given", "m", {}, 4.0, scores)
    (trained.folder / "stage1").mkdir(parents=True)
    log = trained.folder / "stage1" / "metrics.jsonl"
    log.write_text(json.dumps({"step": 5}) + "\n")
    progress = Progress("study", [trained, given])
    scores[0].write_text("{}")
    assert progress.done() == pytest.approx(0.5 + 2.0 + 1.0)
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10)))
    progress.report([trained, given], force=True)
    assert "trained sampled and scored 1/1; given sampled and scored 1/4" in capsys.readouterr().err
