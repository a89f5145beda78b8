"""Inputs of a stage: the commit, dvc.lock, and the md5 of every dependency."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.config import one_line
from pretrain.launch.identity import Identity, flat, split

DVC_VARIABLE = "DVC_STAGE"  # set by DVC for its commands
CODE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class GitState:
    """Commit of the working tree; empty without a git repository."""

    commit: str
    dirty: bool


def git_state(root: Path) -> GitState:
    """Commit, and whether tracked files differ from it (untracked files are ignored).

    Of the repository of the pipeline in `root`; where none is there, as in a user's own folder, of this code.
    A repository around it that tracks none of its files says nothing about it.
    """
    place = root if (root / "dvc.yaml").is_file() else CODE_ROOT
    if not _git(place, "ls-files", "--", "."):
        return GitState(commit="", dirty=False)
    commit = _git(place, "rev-parse", "HEAD")
    changed = _git(place, "status", "--porcelain", "--untracked-files=no", "--", ".") if commit else ""
    return GitState(commit=commit, dirty=bool(changed))


def source_tags(git: GitState, root: Path) -> dict[str, str]:
    """Commit and dvc.lock as MLflow tags."""
    return {
        "mlflow.source.git.commit": git.commit,
        "git.dirty": str(git.dirty).lower(),
        "dvc.lock.md5": lock_hash(root),
    }


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def md5_of(path: Path) -> str:
    """md5 of a file or folder as DVC computes it (a folder's ends in `.dir`).

    Raises FileNotFoundError if it is missing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    digest = hashlib.md5(usedforsecurity=False)
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    entries = [{"md5": md5_of(file), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    digest.update(json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode())
    return digest.hexdigest() + ".dir"


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def read_pipeline(root: Path) -> dict[str, Any]:
    """The stages of dvc.yaml by name; empty without one."""
    return _read_yaml(root / "dvc.yaml").get("stages") or {}


def read_lock(root: Path) -> dict[str, Any]:
    """The stages of dvc.lock by name; empty before the first `dvc repro`."""
    return _read_yaml(root / "dvc.lock").get("stages") or {}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({one_line(error)}); restore it or delete it") from None


def lock_hash(root: Path) -> str:
    """md5 of dvc.lock; empty before the first `dvc repro`."""
    lock = root / "dvc.lock"
    return md5_of(lock) if lock.is_file() else ""


def plain_path(entry: str | Mapping[str, Any]) -> str:
    """Path of a dvc.yaml `outs` or `deps` entry, which is text or a mapping from path to settings."""
    return entry if isinstance(entry, str) else next(iter(entry))


def stage_inputs(stage: str, root: Path) -> dict[str, str]:
    """md5 of each existing dependency of a stage.

    Under DVC, data is not hashed again: dvc.lock has the digest.
    """
    lock = read_lock(root) if DVC_VARIABLE in os.environ else {}
    produced = {
        out["path"]: out["md5"] for entry in lock.values() for out in entry.get("outs", ()) if "md5" in out
    }
    inputs: dict[str, str] = {}
    for entry in read_pipeline(root).get(stage, {}).get("deps", ()):
        path = plain_path(entry)
        if path in produced:
            inputs[path] = produced[path]
        elif (root / path).exists():
            inputs[path] = md5_of(root / path)
    return inputs


def code_digests(stage: str, root: Path) -> dict[str, str]:
    """md5 of each existing file and folder of code that a stage watches; none without dvc.yaml."""
    deps = [plain_path(entry) for entry in read_pipeline(root).get(stage, {}).get("deps", ())]
    return {path: md5_of(root / path) for path in deps if is_code(path) and (root / path).exists()}


def is_code(path: str) -> bool:
    """Whether a dependency of a stage is code of this repository."""
    return Path(path).parts[:1] in (
        ("pretrain",),
        ("rewards",),
        ("finetune",),
        ("orchestration",),
        ("experiments",),
    )


def locked_output(stage: str, output: Path, root: Path) -> tuple[str, dict[str, str]]:
    """What dvc.lock says of a stage: md5 of `output`, and path -> md5 of the code that made it; "" and none
    where it does not list it."""
    entry = read_lock(root).get(stage, {})
    made = {(root / out["path"]).resolve(): out.get("md5", "") for out in entry.get("outs", ())}
    code = {dep["path"]: dep["md5"] for dep in entry.get("deps", ()) if is_code(dep["path"]) and "md5" in dep}
    md5 = made.get(output.resolve(), "")
    return (md5, code) if md5 else ("", {})


def producers(stage: str, root: Path) -> list[str]:
    """Stages whose outputs a stage reads, nearest first."""
    pipeline = read_pipeline(root)
    made_by = {plain_path(out): name for name, entry in pipeline.items() for out in entry.get("outs", ())}
    names: list[str] = []
    for dep in map(plain_path, pipeline.get(stage, {}).get("deps", ())):
        owner = next(
            (name for path, name in made_by.items() if _within(dep, path) or _within(path, dep)), None
        )
        if owner and owner not in names:
            names.append(owner)
    order = list(pipeline)
    return sorted(names, key=order.index, reverse=True)


def maker_of(path: Path, root: Path) -> str:
    """The stage of dvc.yaml whose output `path` is or lies in; "" where none makes it."""
    outs = {name: map(plain_path, entry.get("outs", ())) for name, entry in read_pipeline(root).items()}
    where = path.resolve()
    found = (
        name for name, made in outs.items() if any(where.is_relative_to((root / o).resolve()) for o in made)
    )
    return next(found, "")


def _within(path: str, folder: str) -> bool:
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def fingerprint(inputs: Mapping[str, str], config: Mapping[str, Any], stage: str) -> str:
    """Hash of what a stage's result depends on: its data and the settings that count (`identity_of`).

    A run is continued under its key only with the same fingerprint.
    """
    identity = identity_of(inputs, config, stage)
    text = repr(sorted(identity.inputs.items())) + repr(sorted(identity.settings.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(inputs: Mapping[str, str], config: Mapping[str, Any], stage: str) -> Identity:
    """Identity of a stage by its inputs (path -> digest) and its section of the recipe."""
    settings, neutral = split(flat(config), "pretrain" if stage.startswith("pretrain_") else stage)
    data = {path: digest for path, digest in inputs.items() if not _is_code_of(path, digest)}
    code = {path: digest for path, digest in inputs.items() if path not in data}
    return Identity(settings=settings, inputs=data, code=code, neutral=neutral)


def whole_fingerprint(inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Hash of all inputs, code too, and all settings: what markers without an identity hold."""
    text = repr(sorted(inputs.items())) + repr(sorted(config.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_code_of(path: str, digest: str) -> bool:
    return is_code(path) and ":" not in digest  # inputs of one's own have digests like "sha256:..."
