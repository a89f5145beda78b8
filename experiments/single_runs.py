"""A tracked run outside of the pipeline: something was measured once, from named inputs, and belongs to no stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.provenance import git_state, lock_hash
from experiments.tracking import RunStart, SpoolTracker, ensure_sender, failure_marked, new_run_key


@contextmanager
def single_run(
    name: str, config: Mapping[str, Any], tags: Mapping[str, str], layout: Layout, root: Path, inputs: Mapping[str, str] | None = None
) -> Iterator[SpoolTracker]:  # fmt: skip
    """Run the body as a run `name` in MLflow with commit, settings and inputs (path -> digest); its end is written down however it ends."""
    git = git_state(root)
    tracker = SpoolTracker(layout.tracking / new_run_key(name))
    made_by = {"mlflow.source.git.commit": git.commit, "git.dirty": str(git.dirty).lower(), "dvc.lock.md5": lock_hash(root)}
    tracker.start(RunStart(name=name, tags={"nava.stage": name, **made_by, **tags}, config=config, inputs=inputs or {}))
    ensure_sender(layout.tracking, root)
    with failure_marked(tracker):
        yield tracker
    tracker.finish("FINISHED")
