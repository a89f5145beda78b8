import dataclasses
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from titan_world import config as stage_config

from experiments import doctor, stages
from experiments.cli import VERBS, find_verb, main
from experiments.commands import look
from experiments.commands import pretrain as pretrain_verb
from experiments.commands.demo import demo as demo_verb
from experiments.continuing import Wish
from experiments.layout import Layout
from experiments.pipeline import demo
from experiments.pipeline.pretrain import stage_run_of
from experiments.runs.trackers import TrackingConfig
from pretrain.launch.stage_run import check_run_folder

ROOT = Path(__file__).parent.parent


def run(*arguments):
    """(exit code, nothing else) of a command line, as the shell would see it."""
    try:
        return main(list(arguments))
    except SystemExit as leave:
        return leave.code


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("nava: ")
    return error


def test_help_imports_nothing_heavy():
    heavy = ("torch", "mlflow", "tyro", "numpy", "rich", "yaml")
    code = (
        "import sys, experiments.cli as cli; cli.main(['--help']); "
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")
    assert all(verb.example in done.stdout for verb in VERBS.values())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_its_example(verb, capsys):
    assert run(*verb.split(), "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert VERBS[verb].example in printed and len(printed) > 200


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_names_its_verb(verb):
    assert find_verb(VERBS[verb].example.split()[1:])[0] == verb


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["corpsu"], "did you mean 'corpus'"),
        (["prompt"], "prompt check"),
        (["prompt", "chek", "x"], "did you mean 'prompt check'"),
        (["pretrain", "mimi"], "did you mean 'mini'"),
        (["pretrain", "mini", "--stage", "stage9"], "did you mean 'stage"),
        (["pretrain", "mini", "--nproc", "-1"], "--nproc"),
        (["corpus", "mini", "--set", "corpus.sead=1"], "did you mean 'seed'"),
        (["plan", "nava_7b"], "did you mean 'nava_6b'"),
        (["plan", "mini", "--frames", "24"], "1 + 4n"),
        (["generate", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["prompt", "check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["lineage", "nowhere"], "nowhere"),
        (["tracking", "flush", "--out", "nowhere"], "nowhere"),
        (["report", "--out", "nowhere"], "run `nava evaluate` first"),
        (["evaluate", "--out", "nowhere"], "run `nava generate` on"),
        (["votes", "--out", "nowhere"], "make the rollouts first"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert says in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown verb"):
        main(["corpsu", "--debug"])


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise RuntimeError("a bug")

    monkeypatch.setattr(look, "tracking_flush", broken)
    with pytest.raises(RuntimeError):
        main(["tracking", "flush"])


def test_control_c_is_130(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "tracking_flush", stopped)
    assert run("tracking", "flush") == 130
    assert one_line(capsys) == "nava: interrupted\n"


def test_errors_of_the_operating_system_name_the_file(monkeypatch, capsys):
    def full():
        raise OSError(28, "No space left on device", "out/x")

    monkeypatch.setattr(look, "tracking_flush", full)
    assert run("tracking", "flush") == 2
    assert one_line(capsys) == "nava: out/x: no space left on device; free space and run it again\n"


def test_prompt_check_in_json(tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "A man says: <S>one<E>"}\n{"prompt": "A man says: <S>two"}\n')
    assert run("prompt", "check", str(path), "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], [error["line"] for error in found["errors"]]) == (2, [2])
    path.write_text('{"prompt": "A man says: <S>one<E>"}\n')
    assert run("prompt", "check", str(path)) == 0


@pytest.mark.slow
def test_plan_counts_the_published_model(capsys):
    assert run("plan", "nava_6b", "--gpus", "64", "--json") == 0
    assert json.loads(capsys.readouterr().out)["params_total"] == 6_296_995_520


def test_doctor_finds_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "peak_matmul_gflops", lambda dtype: 100.0)
    present = doctor.examine()
    assert present["cores"] >= 1 and present["matmul_gflops"] == {"bfloat16": 100, "float32": 100}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "resemblyzer" else real(name))
    assert any("--no-deps resemblyzer" in line for line in doctor.examine()["missing"])


def test_a_folder_without_git_is_said_before_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert run("demo") == 2
    line = capsys.readouterr().err
    assert "git init" in line and "no_scm true" in line and line.count("\n") == 1
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    assert doctor.repository_problem(tmp_path) == ""
    (tmp_path / ".dvc" / "config").unlink()
    subprocess.run(["git", "init", "-q"], check=True)
    assert doctor.repository_problem(tmp_path) == ""


def test_the_ceiling_is_a_rate():
    import torch

    assert 0.1 < doctor.peak_matmul_gflops(torch.float32, seconds=0.2) < 1e6


@pytest.fixture
def opened():
    """What a command has begun."""
    with ExitStack() as stack:
        yield stack


def test_a_finished_stage_is_kept_and_replaced_only_when_asked(tmp_path, monkeypatch, capsys, opened):
    trained = []

    def train(stage, job, go_on, notes):
        trained.append((stage, go_on))

    monkeypatch.setattr(stages, "run_stage", train)
    recipe = SimpleNamespace(name="own", pretrain=stage_config(), tracking=TrackingConfig())
    job = stages.StageJob(recipe=recipe, layout=Layout(out=tmp_path), root=tmp_path)
    job.layout.codec.mkdir()
    (job.layout.codec / "config.json").write_text('{"codec_id": "test-codec"}')
    pretrain_verb._train("stage1", job, Wish(), opened)
    model = job.layout.model("stage1")
    model.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"nothing is known of the training there.*--move-aside"):
        pretrain_verb._train("stage1", job, Wish(), opened)
    check_run_folder(dataclasses.replace(stage_run_of(job, "stage1"), out=tmp_path / "other"))
    (tmp_path / "other" / "run.json").rename(model.parent / "run.json")
    (model / "config.json").write_text("{}")
    (model.parent / "state.json").write_text('{"status": "finished", "step": 6}')
    pretrain_verb._train("stage1", job, Wish(), opened)
    assert f"kept, its model is {model}" in capsys.readouterr().out
    assert trained == [("pretrain_stage1", None)]
    pretrain_verb._train("stage1", job, Wish(resume=False), opened)
    assert trained[1:] == [("pretrain_stage1", False)]


def test_the_second_demo_starts_nothing(tmp_path, monkeypatch, capsys):
    import experiments.commands.demo as command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setattr(command, "up_to_date", lambda root: True)
    monkeypatch.setattr(command, "show_result", lambda layout: print("the numbers"))
    monkeypatch.setattr(command, "run_pipeline", lambda root, layout: pytest.fail("the pipeline was started"))
    demo_verb()
    printed = capsys.readouterr().out
    assert "nothing to do" in printed and "the numbers" in printed


def test_a_first_demo_is_not_up_to_date(tmp_path):
    assert not demo.up_to_date(tmp_path)
