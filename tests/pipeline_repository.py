"""The pipeline at debug size in a repository of its own, and commands that run in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from services import ROOT, clean_environment

IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


def pipeline_repository(folder: Path) -> Path:
    """The files of this checkout that git knows or would take, with the debug-size params.yaml, committed."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("docs/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests" / "golden" / "params.yaml", folder / "params.yaml")
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "the pipeline at debug size")
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)


def python(folder: Path, environment: Mapping[str, str], *arguments: str, timeout: float = 400) -> str:
    """What Python with these arguments printed, in a repository, with the repository's own packages."""
    given = {**clean_environment(PYTHONPATH=pythonpath(folder), CUDA_VISIBLE_DEVICES=""), **environment}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def pythonpath(folder: Path) -> str:
    return f"{folder}:{clean_environment()['PYTHONPATH']}"


def change_params(folder: Path, section: str, *path: str, value: object) -> None:
    """Set a field of params.yaml."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    fields = params[section]
    for name in path[:-1]:
        fields = fields[name]
    fields[path[-1]] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Path -> (size, modification time, content) of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about = path.stat()
            found[str(path.relative_to(folder))] = (about.st_size, about.st_mtime_ns, path.read_bytes())
    return found


def senders_of(folder: Path) -> list[psutil.Process]:
    """The processes that send the runs of a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "experiments.runs.sender" in words and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def end_senders(folder: Path) -> None:
    for process in senders_of(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
