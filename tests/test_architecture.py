import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pretrain", "finetune", "rewards", "orchestration", "experiments")
OURS: set[str] = set(PACKAGES)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# What a package may import of ours. The longest matching prefix of the importing module decides.
_GROUND = (
    "types",
    "prompt",
    "config",
    "randomness",
    "files",
    "jsonl",
    "progress",
    "storage",
    "storage_errors",
    "trash",
    "owned",
    "terminal",
)
FOUNDATION = {f"pretrain.{name}" for name in _GROUND}
BELOW = {"pretrain", "finetune", "rewards", "orchestration"}
PIPELINE = (
    "layout",
    "doctor",
    "job",
    "recipes",
    "runs",
    "scoring",
    "alignment",
    "report",
    "voting",
    "pipeline",
)
ALLOWED: dict[str, set[str]] = {
    "rewards": {"rewards"},
    "pretrain": {"pretrain"},
    "pretrain.types": FOUNDATION,
    "pretrain.prompt": FOUNDATION,
    # One strict reader for rewards and all others; rewards imports nothing of ours, so no circle can close.
    "pretrain.config": {"rewards.options", *FOUNDATION},
    # One list of what names in files may import, for the same reason.
    "pretrain.tracking": {"pretrain", "rewards.plugins"},
    "pretrain.randomness": FOUNDATION,
    "pretrain.files": FOUNDATION,
    "pretrain.jsonl": FOUNDATION,
    "pretrain.progress": FOUNDATION,
    "pretrain.storage": FOUNDATION,
    "pretrain.storage_errors": FOUNDATION,
    "pretrain.trash": FOUNDATION,
    "pretrain.owned": FOUNDATION,
    "pretrain.terminal": FOUNDATION,
    "pretrain.media": {"pretrain.media", *FOUNDATION},
    # One downmix for readers and rewards, for the same reason.
    "pretrain.media.channels": {"pretrain.media", "rewards.channels", *FOUNDATION},
    "pretrain.flow": {"pretrain.flow", *FOUNDATION},
    "pretrain.model": {"pretrain.model", *FOUNDATION},
    "pretrain.codecs": {"pretrain.codecs", "pretrain.media", *FOUNDATION},
    "pretrain.codecs.fit": {
        "pretrain.codecs",
        "pretrain.media",
        "pretrain.data.manifest",
        "pretrain.data.stream.store",
        *FOUNDATION,
    },  # reads the corpus it fits
    "pretrain.codecs.published.deferred": {"pretrain.codecs", "rewards.parking", *FOUNDATION},  # one parking
    # The conditioning voice encoder is the network that rewards has; rewards imports nothing of ours, so no
    # circle can close.
    "pretrain.codecs.published.redimnet": {
        "pretrain.codecs",
        "pretrain.media",
        "rewards.timbre.redimnet",
        *FOUNDATION,
    },
    "finetune": {"finetune", "pretrain"},
    # One HTTP client for the rewards' and the rewriter's endpoints, for the same reason.
    "finetune.rewriter.endpoint": {"finetune", "pretrain", "rewards.http"},
    "orchestration": {"orchestration", "finetune", "pretrain", "rewards"},
    "experiments": OURS,
    # Inside experiments: runs and scoring below, then reports and the pipeline, jobs and studies on top; only
    # the command line knows the commands.
    "experiments.layout": set(),
    "experiments.runs": {*BELOW, "experiments.layout", "experiments.runs"},
    "experiments.scoring": {*BELOW, "experiments.layout", "experiments.runs", "experiments.scoring"},
    "experiments.alignment": {
        *BELOW,
        *(f"experiments.{name}" for name in ("layout", "job", "runs", "scoring", "alignment")),
    },
    "experiments.report": {*BELOW, "experiments.layout", "experiments.scoring", "experiments.report"},
    "experiments.voting": {*BELOW, "experiments.voting"},
    "experiments.paper": {*BELOW, "experiments.scoring", "experiments.paper"},
    "experiments.pipeline": {*BELOW, *(f"experiments.{name}" for name in PIPELINE)},
    "experiments.studies": {*BELOW, *(f"experiments.{name}" for name in (*PIPELINE, "errors", "studies"))},
    "experiments.jobs": {
        *BELOW,
        *(f"experiments.{name}" for name in (*PIPELINE, "errors", "stages", "jobs")),
    },
}
# Outside packages that only one of ours may import.
CONFINED = {
    "torchtitan": ("pretrain.titan",),
    "ray": ("orchestration",),
    "vllm": (),
    "mlflow": ("experiments",),
    "dvc": (),
}


CUSTOMARY_ALIASES = {
    ("numpy", "np"),
    ("pyarrow", "pa"),
    ("torch.distributed", "dist"),
    ("functional", "F"),
    ("gradio", "gr"),
    ("torch.nn.functional", "F"),
    ("utils", "dist_utils"),  # of torchtitan.distributed, as torchtitan imports it
}


def modules() -> list[tuple[str, Path]]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return [(module_name(file.relative_to(ROOT)), file) for file in files]


def module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted names a module imports, wherever in the file; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    rule = max((prefix for prefix in ALLOWED if within(module, prefix)), key=len)
    names = imports(source, module, is_package)
    wrong = []
    for name in sorted(names):
        if name.split(".")[0] in OURS:
            leads_there = any(within(allowed, name) and allowed in names for allowed in ALLOWED[rule])
            if not any(within(name, allowed) for allowed in ALLOWED[rule]) and not leads_there:
                wrong.append(f"{module} imports {name}; {rule} may import {', '.join(sorted(ALLOWED[rule]))}")
        if within(name, "tests"):
            wrong.append(f"{module} imports {name}; packages import nothing of the tests")
        for outside, owners in CONFINED.items():
            if within(name, outside) and not any(within(module, owner) for owner in owners):
                wrong.append(f"{module} imports {name}, which belongs in {', '.join(owners) or 'no module'}")
    return wrong


def long_parts(source: str, where: str) -> list[str]:
    wrong = []
    if (lines := source.count("\n")) > MAX_FILE_LINES:
        wrong.append(f"{where}: {lines} lines, at most {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= MAX_FUNCTION_LINES:
                wrong.append(f"{where}:{node.lineno} {node.name}: {length} lines, under {MAX_FUNCTION_LINES}")
    return wrong


def public_types(source: str) -> set[str]:
    """Names of top-level classes and CamelCase aliases, without private ones and constants."""
    found = set()
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
    return {name for name in found if name[0].isupper() and not name.isupper() and "_" not in name}


def shared_names(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Public type -> the modules that define it, where there is more than one."""
    owners: dict[str, list[str]] = {}
    for module, source in sources.items():
        for name in public_types(source):
            owners.setdefault(name, []).append(module)
    return {name: found for name, found in owners.items() if len(found) > 1}


def hiding_aliases(source: str) -> list[str]:
    """`import a as b` and `from a import b as c`, without the customary ones."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    aliases = [(alias.name, alias.asname) for node in nodes for alias in node.names if alias.asname]
    return [f"{name} as {asname}" for name, asname in aliases if (name, asname) not in CUSTOMARY_ALIASES]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    found = [module for module in modules() if within(module[0], package)]
    assert found
    assert [
        wrong
        for name, file in found
        for wrong in violations(name, file.read_text(), file.name == "__init__.py")
    ] == []


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, for type checking too; packages' own files are left out."""
    files = dict(modules())
    plain = {name for name, file in files.items() if file.name != "__init__.py"}
    return {name: (imports(files[name].read_text(), name) & plain) - {name} for name in plain}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other: what is left when modules without imports are taken away."""
    graph = {name: set(targets) for name, targets in graph.items()}
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {
            name: targets & graph.keys() - leaves for name, targets in graph.items() if name not in leaves
        }
    while roots := graph.keys() - set().union(*graph.values(), set()):
        graph = {name: targets for name, targets in graph.items() if name not in roots}
    return [sorted(graph)] if graph else []


def test_no_circle_of_imports():
    assert circles(import_graph()) == []


def test_the_checker_sees_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_files_and_functions_stay_short(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert [
        wrong for file in files for wrong in long_parts(file.read_text(), str(file.relative_to(ROOT)))
    ] == []


def test_only_objectives_know_an_objective():
    """A study of them names them by the recipe's names; only recipes, which set their fields, import them."""
    concrete = {f"finetune.objectives.{name}" for name in ("rwr", "gsb_dpo", "nft", "awm", "grpo")}
    found = {
        name: imports(file.read_text(), name, file.name == "__init__.py") & concrete
        for name, file in modules()
        if not within(name, "finetune.objectives") and not within(name, "experiments.recipes")
    }
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_no_two_public_classes_of_one_name():
    assert shared_names({name: file.read_text() for name, file in modules()}) == {}


def test_no_import_hides_a_name():
    found = {name: hiding_aliases(file.read_text()) for name, file in modules()}
    assert {name: aliases for name, aliases in found.items() if aliases} == {}


def test_the_checkers_see_a_shared_name_and_an_alias():
    assert shared_names({"a": "class Step: ...", "b": "Step = tuple[int, str]", "c": "STEP = 1"}) == {
        "Step": ["a", "b"]
    }
    assert hiding_aliases("import numpy as np\ndef late():\n    from a import b as c") == ["b as c"]


def test_there_is_no_utils():
    assert [str(file) for _, file in modules() if "utils" in file.stem or "helpers" in file.stem] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rewards.speech", "import pretrain.types"),
        ("rewards.speech", "def late():\n    from pretrain import prompt"),
        ("pretrain.flow.path", "from pretrain.model.blocks import Block"),
        ("pretrain.model.blocks", "from pretrain import flow"),
        ("pretrain.model.blocks", "from ..flow import path"),
        ("pretrain.types", "import pretrain.objective"),
        ("pretrain.objective", "from torchtitan.train import Trainer"),
        ("pretrain.generate", "import finetune"),
        ("finetune.policy", "from rewards import types"),
        ("orchestration.round", "import experiments.runs.tracker"),
        ("finetune.trainer", "import mlflow"),
        ("experiments.pipeline.demo", "import ray"),
    ],
)
def test_the_checker_sees_a_violation(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "pretrain.model.blocks",
            "from pretrain import types\nfrom pretrain.types import Stream\nimport torch",
        ),
        ("pretrain.titan.run", "import torchtitan.train"),
        ("experiments.cli", "from pretrain.model import plan"),
        ("pretrain.model.blocks", "from .rope import rotate"),
    ],
)
def test_the_checker_lets_right_imports_pass(module, source):
    assert violations(module, source) == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("experiments.cli", {"torch", "tyro", "rich"}),  # `nava --help`
        ("experiments.stages", {"torch", "mlflow", "rich"}),
        ("pretrain.prompt", {"torch"}),  # `nava prompt check`
        ("pretrain.data.corpus.record", {"torch", "scipy"}),  # once per worker process
        (
            "experiments.recipes.mini",
            {"mlflow", "dvc", "diffusers", "transformers", "librosa", "sklearn", "matplotlib", "scipy"},
        ),
    ],
)
def test_importing_stays_quick(module, heavy):
    program = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) & heavy == set()


def test_the_checker_sees_length():
    body = "\n".join("    x = 1" for _ in range(MAX_FUNCTION_LINES))
    assert long_parts(f"def long():\n{body}\n", "f.py")
    assert long_parts("x = 1\n" * (MAX_FILE_LINES + 1), "f.py")
    assert long_parts("def short():\n    return 1\n", "f.py") == []
