"""`python -m experiments.stages NAME` runs a stage of dvc.yaml as a tracked run; `nava NAME` calls the same.

The work of a stage is `run` of its module in experiments.pipeline, which is imported when the stage runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.job import StageJob
from experiments.layout import STAGES
from experiments.runs.inputs import inputs_read
from experiments.runs.invocation import add_curves, current
from experiments.runs.run import end_on_sigterm, read_record, tracked
from experiments.runs.system import system_metrics
from experiments.runs.tracker import SpoolTracker
from pretrain.config import nearest

if TYPE_CHECKING:
    from pretrain.launch.continuing import TrainingRun


def run_stage(
    stage: str, job: StageJob, go_on: bool | None = None, notes: Mapping[str, str] | None = None
) -> None:
    """Run one stage as a tracked run. Raises ValueError for an unknown stage, naming the nearest one, and
    FileNotFoundError or ValueError where `check_inputs` does, before there is a run.

    go_on, notes: of a training, as `experiments.runs.run.tracked` has them.
    """
    check_stage(stage)
    check_inputs(stage, job)
    config, resume = config_of(stage, job.recipe), is_training(stage)
    reads = inputs_read(stage, job)
    with tracked(
        stage,
        job.recipe.name,
        config,
        job.layout,
        job.root,
        resume,
        go_on=go_on,
        notes=notes,
        reads=reads,
        params=params_shown(stage, config),
    ) as tracker:
        with system_metrics(tracker, job.recipe.tracking.system_metrics_s):
            _work(stage, job, tracker)
        add_to_invocation(stage, job, tracker)


def add_to_invocation(stage: str, job: StageJob, tracker: SpoolTracker) -> None:
    """Add the curves of a training to those of the command that it is part of, the stages of pretraining one
    behind the other, also those that were kept."""
    if not is_training(stage) or (above := current(job.layout, job.root)) is None:
        return
    if stage == "align":
        add_curves(tracker, above, "align", 0)
        return
    before = 0
    for name, config in job.recipe.pretrain.stages.items():
        if name == stage.removeprefix("pretrain_"):
            add_curves(tracker, above, "pretrain", before)
            return
        if record := read_record(job.layout, f"pretrain_{name}"):
            add_curves(SpoolTracker(tracker.folder.with_name(record.key)), above, "pretrain", before)
        before += config.steps


def params_shown(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run shows as parameters: of alignment, those of the algorithms that it used."""
    if stage != "align":
        return dict(config)
    from finetune.objectives.registry import SHIPPED

    unused = SHIPPED.keys() - set(config["sequence"])
    return {name: value for name, value in config.items() if name not in unused}


def check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; {nearest(stage, STAGES)}")


def check_inputs(stage: str, job: StageJob) -> None:
    """Raises FileNotFoundError or ValueError in one line where what a stage reads is not there, for those
    whose module can tell (`check_inputs`)."""
    if check := getattr(importlib.import_module(module_of(stage)), "check_inputs", None):
        check(job)


def _work(stage: str, job: StageJob, tracker: SpoolTracker) -> None:
    module = importlib.import_module(module_of(stage))
    if stage.startswith("pretrain_"):
        module.run(job, tracker, stage.removeprefix("pretrain_"))
    elif stage.endswith("_aligned"):
        module.run_aligned(job, tracker)
    else:
        module.run(job, tracker)


def module_of(stage: str) -> str:
    return f"experiments.pipeline.{_section(stage)}"


def _section(stage: str) -> str:
    """Section of the recipe and module of experiments.pipeline."""
    return "pretrain" if stage.startswith("pretrain_") else stage.removesuffix("_aligned")


def is_training(stage: str) -> bool:
    """The stages that keep checkpoints: an interrupted one is resumed, every other stage starts over."""
    return stage.startswith("pretrain_") or stage == "align"


def config_of(stage: str, recipe: Any) -> dict[str, Any]:
    """The part of the recipe a stage depends on, as plain values; a pretraining stage does not depend on the
    others' numbers."""
    from experiments.recipes.load import as_plain

    section = _section(stage)
    if section == "report":
        return {}
    config = as_plain(recipe.alignment if section == "align" else getattr(recipe, section))
    if section == "pretrain":
        name = stage.removeprefix("pretrain_")
        config["stages"] = {name: config["stages"][name]}
    return config


def run_where_needed(stage: str, job: StageJob) -> None:
    """Run a stage, but keep a training whose inputs, settings and code are the same.

    DVC watches the whole pretrain section for each of its stages, and so calls one also when only another's
    numbers changed, or neutral ones.
    """
    if not is_training(stage):
        run_stage(stage, job)
        return
    from experiments.continuing import decide_for_dvc
    from pretrain.launch.training_lock import alone

    with alone(job.layout.output_of(stage)):
        decision = decide_for_dvc(training_of(stage, job), job)
        if decision.train:
            run_stage(stage, job, decision.go_on, decision.notes)
            return
    from experiments.runs.kept import record_kept

    record_kept(stage, job.recipe.name, config_of(stage, job.recipe), job.layout, job.root)


def training_of(stage: str, job: StageJob) -> TrainingRun:
    """The training of a stage, to hold against what lies in its folder."""
    if stage == "align":
        from experiments.alignment.inputs import AlignInputs
        from experiments.pipeline.align import alignment_of

        return alignment_of(job, AlignInputs())
    from experiments.pipeline.pretrain import stage_run_of

    return stage_run_of(job, stage.removeprefix("pretrain_"))


def main(arguments: list[str]) -> int:
    """Called by DVC in the repository root; the recipe is the one params.yaml names."""
    from experiments.errors import one_line_errors
    from pretrain.terminal import escaped_output

    with one_line_errors(), escaped_output():
        if len(arguments) != 1:
            raise ValueError(f"expected one stage name, got {arguments}; {nearest('corpus', STAGES)}")
        check_stage(arguments[0])
        from experiments.recipes.load import load_recipe, read_params

        end_on_sigterm()
        params = Path("params.yaml")
        recipe = load_recipe(read_params(params).get("recipe", "mini"), params)
        run_where_needed(arguments[0], StageJob(recipe=recipe))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
