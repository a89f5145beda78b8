"""Submit a pipeline stage as a Ray job, named by the MLflow id of its run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.layout import STAGES, Layout
from experiments.runs.provenance import git_state, read_pipeline
from experiments.runs.run import can_resume, running_key
from experiments.runs.sender import store_uri
from experiments.runs.spool import SpooledRun
from experiments.runs.store_uri import has_user_info
from experiments.runs.tracker import ANNOUNCED_RUN, RunStart, SpoolTracker, ensure_sender, new_run_key
from experiments.stages import config_of, is_training
from pretrain.config import nearest
from rewards import plugins

if TYPE_CHECKING:
    from orchestration.launch import Jobs

MLFLOW_PATIENCE_S = 90.0
TRACKING_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission from the repository in `root`; `workdir` and `python` are paths on the cluster."""

    recipe: Any
    stage: str
    workdir: str
    python: str
    root: Path = Path()
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: int = 120
    max_requeues: int = 3

    @property
    def place(self) -> str:
        """Identity of the working copy; two jobs in one place would block on DVC's lock."""
        return self.workdir


def check(submission: Submission, chosen: str) -> None:
    """Raises ValueError or FileNotFoundError for what would fail on the cluster.

    `chosen`: the recipe named in params.yaml.
    """
    root, stage = submission.root, submission.stage
    if not (root / "dvc.yaml").is_file():
        raise FileNotFoundError("dvc.yaml: no such file here; run this in the repository root")
    known = [name for name in read_pipeline(root) if name in STAGES]
    if stage not in known:
        raise ValueError(f"--stage: unknown stage {stage!r}; {nearest(stage, known)}")
    if chosen != submission.recipe.name:
        raise ValueError(
            f"params.yaml: names recipe {chosen!r}, which is what a job runs; write "
            f"{submission.recipe.name!r} there"
        )
    if has_user_info(os.environ.get(TRACKING_URI, "")):
        raise ValueError(
            f"{TRACKING_URI}: holds a password or token, which everybody who sees the cluster would see; set "
            "it on the cluster instead"
        )


def submit_stage(submission: Submission, jobs: Jobs) -> str:
    """Submit a stage as a job; returns its id: the MLflow run id, plus a suffix for later attempts.

    Raises ValueError where a job is at work in the same place, OSError where MLflow or Ray do not answer.
    """
    from orchestration.launch import JobSpec, check_free, submit

    check_free(jobs, submission.place)
    stage, spool = submission.stage, Layout(out=submission.root / "out").tracking
    key = run_to_resume(submission) or announce(submission, spool)
    try:
        run_id = mlflow_id(key, spool, submission.root)
        tracked = {name: os.environ[name] for name in (TRACKING_URI,) if os.environ.get(name)}
        spec = JobSpec(
            run_id=run_id,
            command=[submission.python, "-m", "experiments.jobs.attend", stage],
            workdir=submission.workdir,
            env={**tracked, **plugins.inherited(), **submission.env, ANNOUNCED_RUN: f"{stage}={key}"},
            grace_s=submission.grace_s,
            max_requeues=submission.max_requeues,
            facts={"nava.stage": stage, "nava.recipe": submission.recipe.name},
        )
        return submit(jobs, spec, submission.place)
    except BaseException:
        if not SpooledRun(spool / key).started():
            SpoolTracker(spool / key).finish("FAILED")
        raise


def run_to_resume(submission: Submission) -> str:
    """Key of an interrupted training that the job will resume; "" if it starts a new run."""
    stage, root = submission.stage, submission.root
    layout = Layout(out=root / "out")
    if (
        is_training(stage)
        and can_resume(stage, config_of(stage, submission.recipe), layout, root)
        and layout.output_of(stage).is_dir()
    ):
        return running_key(stage, layout)
    return ""


def announce(submission: Submission, spool: Path) -> str:
    """Announce a future run in the spool; returns its key."""
    git = git_state(submission.root)
    tags = {
        "nava.stage": submission.stage,
        "nava.recipe": submission.recipe.name,
        "mlflow.source.git.commit": git.commit,
    }
    tracker = SpoolTracker(spool / new_run_key(submission.stage))
    tracker.announce(RunStart(name=submission.stage, tags=tags))
    return tracker.key


def mlflow_id(key: str, spool: Path, root: Path, patience_s: float = MLFLOW_PATIENCE_S) -> str:
    """MLflow id of the run, obtained by the sender process.

    Raises OSError if MLflow has not responded after `patience_s`.
    """
    run, uri = SpooledRun(spool / key), store_uri(root)
    end = time.monotonic() + patience_s
    ensure_sender(spool, root)
    printed = False
    while not (run_id := run.run_id(uri)):
        if time.monotonic() > end:
            raise OSError(
                f"{uri}: MLflow gave the run no id in {patience_s:.0f} s, see {spool / 'sender.log'}; the "
                "job is named by it"
            )
        if not printed and time.monotonic() > end - patience_s + 3:
            printed = True
            print(
                f"waiting for MLflow to name the run (at most {patience_s:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(0.2)
    return run_id
