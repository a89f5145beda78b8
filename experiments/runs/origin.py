"""The repository that runs belong to, also for what DVC runs in a temporary copy of it.

`dvc exp run --temp` and queued experiments run in a folder below `.dvc/tmp/exps` of the repository that they
came from; DVC removes it at the end, so the spool and MLflow's database are those of that repository.
"""

from __future__ import annotations

from pathlib import Path

from experiments.layout import Layout

DVC_EXPERIMENTS = (".dvc", "tmp", "exps")  # of dvc.repo.experiments: temporary workspaces lie below


def origin_of(root: Path) -> Path:
    """The repository that the workspace `root` was made from; `root` itself where it is no temporary one."""
    parts = root.resolve().parts
    for end in range(len(parts) - 3, 0, -1):
        if parts[end : end + 3] == DVC_EXPERIMENTS:
            return Path(*parts[:end])
    return root


def is_temporary(root: Path) -> bool:
    """True for a workspace that DVC removes when its experiment ends."""
    return origin_of(root) != root


def spool_of(layout: Layout, root: Path) -> Path:
    """Where the runs of a layout are spooled: its own place in the repository, never in a temporary copy."""
    if not is_temporary(root):
        return layout.tracking
    spool, workspace = (root / layout.tracking).resolve(), root.resolve()
    inside = spool.is_relative_to(workspace)
    return origin_of(root) / spool.relative_to(workspace) if inside else spool
