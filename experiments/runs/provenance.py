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


def _within(path: str, folder: str) -> bool:
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def fingerprint(inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Hash of a stage's inputs and settings.

    An interrupted stage is resumed only under the same fingerprint.
    """
    text = repr(sorted(inputs.items())) + repr(sorted(config.items()))
    return hashlib.sha256(text.encode()).hexdigest()
