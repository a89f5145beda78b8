"""Tuning a prompt rewriter as a tracked run: what is kept, what goes on, what would be lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.run import Interrupted, can_resume, marker_of, tracked, unchanged
from experiments.runs.tracker import SpoolTracker
from finetune.rewriter.checkpoints import FOLDER
from finetune.rewriter.config import Algorithm, GrpoTuning, Tuning, described
from finetune.rewriter.tune import TuneResult

STAGE = "rewriter"


def tune_tracked(
    algorithm: Algorithm,
    config: Tuning,
    made_of: Mapping[str, str],
    layout: Layout,
    root: Path,
    resume: bool,
    work: Callable[[SpoolTracker], TuneResult],
    tags: Mapping[str, str],
    sources: Sequence[Path],
) -> None:
    """Run `work` in OUT/rewriter. `made_of`: digests of model and data, part of the run's settings; an
    interrupted run of the same goes on.

    Raises ValueError where another tuned rewriter would be replaced, or one of `sources` with it, Interrupted
    when it was stopped before its last step.
    """
    if wrong := next(
        (path for path in sources if path.resolve().is_relative_to(layout.rewriter.resolve())), None
    ):
        raise ValueError(
            f"{wrong}: lies in {layout.rewriter}, which this tuning replaces; give --out for another folder"
        )
    settings = json.loads(json.dumps({"algorithm": algorithm, "rewriter": described(config), **made_of}))
    if not resume:
        marker_of(STAGE, layout).unlink(missing_ok=True)
    elif unchanged(STAGE, settings, layout, root):
        print(
            f"{layout.rewriter}: finished, with these inputs and settings; kept (--no-resume tunes it again)"
        )
        return
    elif _holds_tuning(layout.rewriter) and not can_resume(STAGE, settings, layout, root):
        advice = "give --no-resume to replace it, or --out for another folder"
        raise ValueError(f"{layout.rewriter}: tuned with other inputs or settings; {advice}")
    with tracked(STAGE, algorithm, settings, layout, root, resume=True) as tracker:
        tracker.set_tags({"nava.algorithm": algorithm, **tags})
        tuned = work(tracker)
        if tuned.status != "finished":
            raise Interrupted(
                f"rewriter {algorithm} stopped after step {tuned.step} with a checkpoint; the same command "
                "goes on"
            )
        tracker.log_model(tuned.adapter, "rewriter-adapter", {"nava.algorithm": algorithm})
        tracker.log_model(tuned.model, "rewriter", {"nava.algorithm": algorithm})
    print(
        f"adapter  {tuned.adapter}\nmodel    {tuned.model}   (vllm serve {tuned.model}; nava rewrite ... "
        "--model)"
    )


def overridden(config: Any, settings: tuple[str, ...]) -> Any:
    """The settings of a tuning with KEY=VALUE put in. Raises ValueError naming the nearest key."""
    from experiments.recipes.load import parse_setting
    from pretrain.config import override

    together: dict[str, Any] = {}  # as some of them only go together, such as batch and micro_batch
    weights = dict(config.rewards) if isinstance(config, GrpoTuning) else {}
    for setting in settings:
        values = parse_setting(setting)
        if isinstance(values.get("rewards"), dict):
            values["rewards"] = weights = {**weights, **values["rewards"]}
        together |= values
    return override(config, together)


def _holds_tuning(folder: Path) -> bool:
    return (folder / "model").is_dir() or any((folder / FOLDER).glob("checkpoint-*"))
