"""Registered models that lie in a trash folder and nowhere else: MLflow has the path of a large one only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.runs import logged_files
from experiments.runs.model_names import CHECKPOINT_TAG
from experiments.runs.spool import spooled_runs
from pretrain.files import read_json


def only_copies(moved: Iterable[Path], spool: Path) -> Iterator[tuple[Path, str]]:
    """(folder, "NAME (alias A)") of every model below `moved` (local) that is a registered version by its
    path, by the runs in `spool`, and is not there any more."""
    known: dict[str, tuple[str, Path]] | None = None
    for path in moved:
        for config in sorted(path.rglob("config.json")) if path.is_dir() and not path.is_symlink() else ():
            checkpoint = _checkpoint_of(config.parent)
            if checkpoint and _size(config.parent) > logged_files.MAX_COPIED_BYTES:
                known = _registered(spool) if known is None else known
                name, place = known.get(checkpoint, ("", Path()))
                if name and _checkpoint_of(place) != checkpoint:
                    yield config.parent, name


def _registered(spool: Path) -> dict[str, tuple[str, Path]]:
    """Checkpoint id -> its registered name with the alias that it has, and where it was."""
    models: dict[str, dict[str, Any]] = {}
    holders: dict[tuple[str, str], tuple[int, str]] = {}  # (name, alias) -> (when it moved, checkpoint id)
    for run in spooled_runs(spool):
        for _, event in run.events():
            name, alias = event.get("registered", ""), event.get("alias", "")
            checkpoint = event.get("checkpoint") or event.get("tags", {}).get(CHECKPOINT_TAG, "")
            if event["kind"] not in ("model", "model_alias") or not checkpoint or not name:
                continue
            if event["kind"] == "model":
                models[checkpoint] = event
            if alias:
                holders[name, alias] = max(
                    holders.get((name, alias), (0, "")), (event["time_ms"], checkpoint)
                )
    found = {}
    for checkpoint, event in models.items():
        named = sorted(alias for (_, alias), (_, held) in holders.items() if held == checkpoint)
        said = f" (alias {', '.join(named)})" if named else ""
        found[checkpoint] = (f"{event['registered']}{said}", Path(event["path"]))
    return found


def _checkpoint_of(folder: Path) -> str:
    config = folder / "config.json"
    try:
        return str(read_json(config, "").get("checkpoint_id") or "") if config.is_file() else ""
    except (OSError, ValueError):
        return ""


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
