"""`nava pretrain`: the stages of a recipe, on one machine or as one of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.options import RecipeName, SetOptions, recipe_for
from experiments.layout import Layout
from pretrain.config import nearest

if TYPE_CHECKING:
    from experiments.job import StageJob


InitFrom = Annotated[
    str,
    tyro.conf.arg(
        name="from", help="model folder (of `nava import`) that the first stage is initialised from"
    ),
]
NumNodes = Annotated[
    int, tyro.conf.arg(help="number of machines; each runs this command and sees the same --out")
]
Rendezvous = Annotated[
    str, tyro.conf.arg(metavar="HOST:PORT", help="rendezvous: address of the first machine")
]


def pretrain(
    recipe: RecipeName,
    /,
    stage: str = "all",
    nproc: int = 0,
    port: int = 0,
    init_from: InitFrom = "",
    nnodes: NumNodes = 1,
    rdzv: Rendezvous = "",
    node_rank: Annotated[
        int, tyro.conf.arg(help="rank of this machine; -1 = from Slurm's or Kubeflow Trainer's environment")
    ] = -1,
    max_restarts: Annotated[int, tyro.conf.arg(help="restarts of all ranks after one has died")] = 0,
    settings: SetOptions = (),
    out: Path = Path("out"),
    resume: Annotated[
        bool, tyro.conf.arg(help="resume an interrupted run; --no-resume starts the stage over")
    ] = True,
) -> None:
    """Train the stages of a recipe one after another, or one of them; each starts from the one before it, the
    first from --from if given.

    --nproc 0 is one rank per GPU, or two ranks without a GPU; --port 0 is any free port for torchrun on a
      single machine. An interrupted run resumes from its last checkpoint. Several machines use consecutive
      ports from that of --rdzv on, one per stage.
    """
    from experiments.job import StageJob
    from pretrain.launch.nodes import Nodes, find_node_rank
    from pretrain.storage import place

    loaded = recipe_for(recipe, settings)
    names = list(loaded.pretrain.stages)
    if stage != "all" and stage not in names:
        raise ValueError(f"--stage: unknown stage {stage!r}; {nearest(stage, [*names, 'all'])}")
    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    nodes = Nodes(
        count=nnodes, rank=find_node_rank(nnodes, node_rank), rendezvous=rdzv, max_restarts=max_restarts
    )
    if nnodes > 1 and not resume:
        raise ValueError(
            "--no-resume: the other nodes cannot know of it; remove the stage's folder, then start all nodes"
        )
    start = place(init_from) if init_from else None
    job = StageJob(
        recipe=loaded, layout=Layout(out=out), nproc=nproc, port=port, nodes=nodes, init_from=start
    )
    chosen = names if stage == "all" else [stage]
    if nodes.leads:
        _check_before_training(chosen, job, resume)
    for name in chosen:
        here = dataclasses.replace(
            job, nodes=nodes.at(names.index(name)), init_from=start if name == chosen[0] else None
        )
        if nodes.leads:
            _train(name, here, resume)
        elif not _join(name, here):
            return


def _check_before_training(stages: list[str], job: StageJob, resume: bool) -> None:
    """Check what the stages need, before anything is replaced. Raises ValueError or FileNotFoundError."""
    from experiments.pipeline.pretrain import check_same_data, codec_id_of, latents_of
    from pretrain.data.stream.sample_set import check_sets
    from pretrain.launch.stage_run import parent_id
    from pretrain.launch.torchrun import check_port

    config = job.recipe.pretrain
    for stage in stages:
        check_sets(latents_of(config, job.layout), config.stage(stage))
    if job.nproc:
        job.recipe.pretrain.local_batch(job.nproc * job.nodes.count)
    if job.port:
        check_port(job.port)
    if job.init_from:
        _check_same_parent(job.layout.pretrain(stages[0]), parent_id(job.init_from))
    for stage in stages:
        if config.latents:
            codec_id_of(config, stage, job.layout)
        if resume:
            check_same_data(config, stage, job.layout)


def _check_same_parent(trained: Path, parent: str) -> None:
    """Raises ValueError where the folder's training started from another model."""
    from pretrain.files import read_json
    from pretrain.launch.torchrun import IDENTITY

    path = trained / IDENTITY
    before = read_json(path, f"remove {trained}").get("parent") if path.is_file() else parent
    if before != parent:
        raise ValueError(
            f"{trained}: started from {before or 'scratch'}, not from {parent} (--from); give --out for "
            "another folder"
        )


def _train(stage: str, job: StageJob, resume: bool) -> None:
    from experiments.stages import run_stage

    name = f"pretrain_{stage}"
    if must_train(
        name, stage, job.layout.pretrain(stage), job, resume, f" ({job.recipe.pretrain.flavor} asked for)"
    ):
        run_stage(name, job)
        print(f"{stage}: finished; its model is {job.layout.model(stage)}")


def _join(stage: str, job: StageJob) -> bool:
    """Run this node's ranks of a stage; False where it was interrupted, which the leading node reports."""
    from pretrain.launch.launch import join_stage

    result = join_stage(job.layout.pretrain(stage), job.ranks, job.nodes)
    print(f"{stage}: {result.status} at step {result.step}")
    return result.status == "finished"


def must_train(
    name: str,
    label: str,
    trained: Path,
    job: StageJob,
    resume: bool,
    where: str = "",
    config: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> bool:
    """True to train or resume, False to keep a finished training of the same inputs and config. Raises
    ValueError where a training of other ones would be replaced. config: default the stage's section; inputs:
    default those that the pipeline names."""
    from experiments.runs.run import can_resume, marker_of, unchanged
    from experiments.stages import config_of

    layout, config = job.layout, config or config_of(name, job.recipe)
    if not resume:
        marker_of(name, layout).unlink(missing_ok=True)
    elif unchanged(name, config, layout, job.root, inputs):
        print(f"{label}: finished, with these inputs and settings; kept (--no-resume trains it again)")
        return False
    elif _holds_training(trained) and not can_resume(name, config, layout, job.root, inputs):
        raise ValueError(
            f"{trained}: trained with other inputs or settings{where}; give --no-resume to replace it, or "
            "--out for another folder"
        )
    return True


def _holds_training(folder: Path) -> bool:
    return (folder / "model").is_dir() or any(folder.glob("checkpoint/step-*/.metadata"))
