"""Names of classes in files run nothing that the user did not allow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from canary import MODULE, Canary
from hypothesis import given
from hypothesis import strategies as st

from experiments import stages
from experiments.allowance import allow_named, take_plugins
from experiments.cli import main
from experiments.recipes.load import load_recipe
from finetune.objectives.registry import objective_type
from pretrain.media.write import write_wav
from pretrain.tracking import build
from rewards.catalog import build_rewards, metrics_of, plugin_class
from rewards.plugins import KINDS, VARIABLE, allowed, inherited, load

pytestmark = pytest.mark.security
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Importable, and nothing is allowed."""
    made = Canary(tmp_path / "of_others")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(made.folder))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield made
    sys.modules.pop(MODULE, None)


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "clips" / "a.wav"
    path.parent.mkdir()
    write_wav(path, np.sin(np.arange(8000, dtype=np.float32)), 16_000)
    return path


def rubric(tmp_path: Path, name: str, options: dict) -> Path:
    path = tmp_path / "rubric.yaml"
    path.write_text(json.dumps({"items": {name: {"weight": 1.0}}, "options": {name: options}}))
    return path


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", f"{MODULE}:Reward", f"{MODULE}:NoReward"])
def test_a_rubric_runs_no_code(tmp_path, canary, sound, capsys, name):
    options = {"args": ["touch", str(canary.mark)]}
    out = tmp_path / "scores.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(
            ["score", str(sound.parent), "--rubric", str(rubric(tmp_path, name, options)), "--out", str(out)]
        )
    said = capsys.readouterr().err
    module = name.partition(":")[0]
    assert stopped.value.code == 2 and canary.silent
    assert (
        f"module {module} is not allowed" in said and f"--plugins {module}" in said and said.count("\n") == 1
    )


@pytest.mark.parametrize(
    "name",
    [
        "rewards.plugins:os",
        "rewards.plugins:importlib",
        "rewards.catalog:build_rewards",
        "rewards.catalog:Path",
        "rewards.options:nearest",
        "experiments.cli:main",
        "pretrain.storage:remove_folder",
        "rewards.base:__builtins__",
        "rewards.base:Reward.score",
        "rewards:../evil",
        "rewards..base:Reward",
        ":Reward",
        "rewards.base:",
    ],
)
def test_our_own_packages_give_rewards_only(canary, name):
    with pytest.raises(ValueError, match=r"not a reward|no such|has no|cannot be imported"):
        plugin_class(name)


def test_what_is_allowed_is_checked_before_it_is_called(canary, monkeypatch):
    monkeypatch.setenv(VARIABLE, MODULE)
    with pytest.raises(ValueError, match="is not a reward"):
        build_rewards([f"{MODULE}:NoReward"], {}, None)  # type: ignore[arg-type]
    assert canary.mark.read_text() == "imported"
    assert metrics_of([f"{MODULE}:Reward"])["evil"].name == "evil" and canary.mark.read_text() == "imported"


@pytest.mark.parametrize("what", ["trackers", "scorer", "--clip-score"])
def test_trackers_and_scorers_of_a_run_folder_run_no_code(canary, what):
    for name in ("subprocess:Popen", f"{MODULE}:Reward", "pretrain.storage:remove_folder"):
        with pytest.raises(ValueError):
            build(name, {"args": ["touch", str(canary.mark)]}, what)
    with pytest.raises(ValueError, match="not allowed"):
        objective_type(f"{MODULE}:Reward")
    assert canary.silent


@pytest.mark.parametrize(
    "name", [f"{MODULE}.recipe", "os.getcwd", "experiments.cli.main", "pretrain.storage.remove_folder"]
)
def test_a_params_file_names_no_recipe_of_others(tmp_path, canary, monkeypatch, capsys, name):
    with pytest.raises(ValueError, match=r"not allowed|no such part"):
        load_recipe(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(f"recipe: {name}\n")
    with pytest.raises(SystemExit) as stopped:
        stages.main(["corpus"])
    assert (
        stopped.value.code == 2 and canary.silent and "not allowed" in capsys.readouterr().err + "not allowed"
    )


def test_the_command_line_allows_by_plugins_or_by_the_name_itself(canary, monkeypatch):
    assert take_plugins(["score", "x", "--plugins", "a.b,c", "--plugins=d", "--rewards", "y"]) == [
        *("score", "x", "--rewards", "y")
    ]
    assert allowed() == ("a.b", "c", "d") and inherited() == {VARIABLE: "a.b,c,d"}
    monkeypatch.setenv(VARIABLE, "")
    allow_named(
        ["clips", "--rewards", "mine.r:One", "snr", "--set", "two:Two.tolerance=5"], with_recipe=False
    )
    allow_named(["my.recipes.small", "--set", "align.sequence=[three:Objective]"], with_recipe=True)
    assert allowed() == ("mine.r", "two", "my.recipes", "three")
    for wrong in (["--plugins"], ["--plugins", "--out"], ["--plugins", "a;b"], ["--plugins="]):
        with pytest.raises(ValueError, match="module"):
            take_plugins(wrong)


@given(st.lists(st.from_regex(r"[a-z.:/=A-Z-]{1,20}", fullmatch=True), max_size=6))
def test_file_names_on_the_command_line_allow_nothing(names):
    before = os.environ.pop(VARIABLE, None)
    try:
        files = [name for name in names if not name.startswith("-")]
        allow_named(
            [*files, "evil:Reward", "--rubric", "evil:Reward.yaml", "--to", "evil:X"], with_recipe=False
        )
        assert allowed() == ()
    finally:
        if before is not None:
            os.environ[VARIABLE] = before


def test_a_package_is_allowed_with_what_is_below_it_and_nothing_beside_it(monkeypatch):
    monkeypatch.setenv(VARIABLE, "xml.etree")
    assert load("xml.etree.ElementTree:XMLParser", KINDS["--clip-score"], "x").__name__ == "XMLParser"
    for name in ("xml:etree", "xml.etreeX:y", "xmlrpc.client:ServerProxy"):
        with pytest.raises(ValueError, match="not allowed"):
            load(name, KINDS["--clip-score"], "x")


def test_processes_inherit_what_is_allowed(canary):
    code = f"from rewards.catalog import plugin_class; print(plugin_class('{MODULE}:Reward').name)"
    path = os.pathsep.join([str(ROOT), str(canary.folder)])
    for value, answer in (("", ""), (MODULE, "evil")):
        environment = {**os.environ, "PYTHONPATH": path, VARIABLE: value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == answer and (done.returncode == 0) == bool(value), done.stderr


def test_nava_plugins_lists_without_importing_what_is_not_allowed(tmp_path, canary, capsys):
    path = rubric(tmp_path, f"{MODULE}:Reward", {})
    assert main(["plugins", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["allowed"] == [] and "snr_estimate_db" in found["shipped"]["rewards"] and canary.silent
    assert found["named"] == [{"file": str(path), "name": f"{MODULE}:Reward", "problem": "not allowed"}]
    assert main(["--plugins", MODULE, "plugins", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{canary.folder}/{MODULE}.py" in said and "Reward (reward" in said and "allowed" in said
