"""Every stage of dvc.yaml names all the code that it runs.

The closure of a stage is its module in experiments.pipeline and all modules of ours that it imports or names
in a string ("package.module:name", or a module of `python -m`), and so on from each of them.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from test_architecture import OURS, imports, within

from experiments.layout import STAGES
from experiments.runs.provenance import plain_path, read_pipeline, stage_inputs
from experiments.stages import module_of

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"([a-z_]\w*(?:\.[a-z_]\w*)+)(?::\w+)?")

# Not followed: what decides how a run is started and recorded, not what a stage computes.
EXEMPT = (
    "experiments.runs",  # spool, MLflow, lineage
    "experiments.layout",  # paths, which dvc.yaml has as deps and outs
    "experiments.job",
    "experiments.stages",  # only finds a stage's module
    # Every stage watches this folder, but not what it imports: the config classes of all stages. Those of its
    # own sections are in the closure of its module.
    "experiments.recipes",
    # Clips of a trained model to look at. No stage reads them, and a change of their layout should not train
    # a model again, or forbid an interrupted training to resume.
    "experiments.pipeline.samples",
)


def file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


class _WithoutTyping(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        return ast.Pass() if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


@cache
def parsed(module: str) -> ast.Module:
    path = file_of(module)
    assert path is not None
    return ast.fix_missing_locations(_WithoutTyping().visit(ast.parse(path.read_text())))


@cache
def neighbours(module: str) -> frozenset[str]:
    """Modules of ours that a module imports or names, and their packages."""
    tree, path = parsed(module), file_of(module)
    names = imports(ast.unparse(tree), module, bool(path) and path.name == "__init__.py")
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    names |= {found[1] for text in strings if isinstance(text, str) and (found := NAMED.fullmatch(text))}
    packages = {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 1)}
    return frozenset(name for name in names | packages if name.split(".")[0] in OURS and file_of(name))


def closure(entry: str) -> set[Path]:
    """Files, relative to the repository root, without those of no code."""
    seen, waiting = set(), [entry]
    while waiting:
        module = waiting.pop()
        if module in seen or any(within(module, exempt) for exempt in EXEMPT):
            continue
        seen.add(module)
        waiting += neighbours(module)
    return {path.relative_to(ROOT) for module in seen if has_code(module) and (path := file_of(module))}


def has_code(module: str) -> bool:
    docstring = ast.get_docstring(parsed(module)) is not None
    return len(parsed(module).body) > docstring


def unwatched(stage: str, pipeline: dict) -> list[str]:
    deps = {Path(plain_path(dep)) for dep in pipeline[stage]["deps"]}
    return sorted(str(file) for file in closure(module_of(stage)) if not deps & {file, *file.parents})


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_watches_all_the_code_it_runs(stage):
    assert unwatched(stage, read_pipeline(ROOT)) == []


def test_a_module_that_nobody_watches_is_found():
    pipeline = {"corpus": {"deps": ["out/corpus", "pretrain/data/corpus", "pretrain/codecs"]}}
    assert {"pretrain/types.py", "pretrain/prompt/rows.py"} <= set(unwatched("corpus", pipeline))
    assert not any(name.startswith("pretrain/codecs") for name in unwatched("corpus", pipeline))


def test_names_in_strings_and_late_imports_are_followed():
    assert Path("pretrain/titan/trainer.py") in closure(module_of("pretrain_stage1"))  # of `python -m`
    assert Path("rewards/speech/wer.py") in closure(module_of("align"))  # imported when used


@pytest.fixture
def copied(tmp_path):
    """The code in a repository of its own, where every stage is up to date with outputs of no content."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        if name.split("/")[0] in (*OURS, "dvc.yaml", "params.yaml", ".dvcignore") and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    for entry in read_pipeline(ROOT).values():
        for out in map(plain_path, (*entry.get("outs", ()), *entry.get("metrics", ()))):
            path = tmp_path / out if Path(out).suffix else tmp_path / out / "data"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "commit", "-f", "-q")
    return tmp_path


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_changed_constant_is_seen_by_dvc_and_by_the_record_of_a_run(copied):
    assert json.loads(dvc(copied, "status", "--json")) == {}
    before = {stage: stage_inputs(stage, copied) for stage in STAGES}
    types = copied / "pretrain" / "types.py"
    types.write_text(types.read_text().replace("AUDIO_SAMPLE_RATE_HZ = ", "AUDIO_SAMPLE_RATE_HZ = 1 + "))
    assert set(json.loads(dvc(copied, "status", "--json"))) == set(STAGES)
    assert all(stage_inputs(stage, copied) != before[stage] for stage in STAGES)
