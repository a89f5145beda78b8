"""`nava pretrain`: the stages of a recipe, on one machine or as one of several."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import (
    AnywayFlag,
    AsideFlag,
    MaxRestarts,
    NodeRank,
    NumNodes,
    ProfileRanks,
    ProfileSteps,
    RecipeName,
    Rendezvous,
    ResumeFlag,
    SetOptions,
    profiled,
    recipe_for,
)
from experiments.layout import Layout
from pretrain.config import nearest

if TYPE_CHECKING:
    from experiments.continuing import Wish
    from experiments.job import StageJob
    from pretrain.launch.continuing import TrainingRun
    from pretrain.launch.nodes import Nodes


InitFrom = Annotated[
    str,
    tyro.conf.arg(
        name="from",
        help="model folder (of `nava import`), or models:/NAME@ALIAS or /VERSION of MLflow, that the first "
        "stage is initialised from",
    ),
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
    node_rank: NodeRank = -1,
    max_restarts: MaxRestarts = 0,
    profile: ProfileSteps = "",
    profile_ranks: ProfileRanks = "0",
    settings: SetOptions = (),
    out: Path = Path("out"),
    resume: ResumeFlag = True,
    resume_anyway: AnywayFlag = False,
    move_aside: AsideFlag = False,
) -> None:
    """Train the stages of a recipe one after another, or one of them; each starts from the one before it, the
    first from --from if given.

    --nproc 0 is one rank per GPU, or two ranks without a GPU; --port 0 is any free port for torchrun on a
      single machine. Several machines use consecutive ports from that of --rdzv on, one per stage.

    An interrupted stage goes on from its last checkpoint, also with other logging, checkpointing, memory and
    parallelism settings, and with other code, which is said. A finished one is kept, or goes on where only
    more steps are asked for: nava pretrain mini --stage stage1 --set pretrain.stages.stage1.steps=1200. A
    setting, an input or a parent that changes numbers is refused by name; see --resume-anyway and
    --move-aside.
    """
    from experiments.continuing import Wish
    from experiments.job import StageJob
    from pretrain.launch.nodes import Nodes, find_node_rank

    nodes = Nodes(
        count=nnodes, rank=find_node_rank(nnodes, node_rank), rendezvous=rdzv, max_restarts=max_restarts
    )
    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    loaded = recipe_for(recipe, settings)
    job = StageJob(
        recipe=dataclasses.replace(loaded, pretrain=profiled(loaded.pretrain, profile, profile_ranks)),
        layout=Layout(out=out),
        nproc=nproc,
        port=port,
        nodes=nodes,
        init_from=_start(init_from, out, nodes) if init_from else None,
        anyway=resume_anyway,
    )
    _train_stages(job, stage, Wish(resume, resume_anyway, move_aside))


def _start(text: str, out: Path, nodes: Nodes) -> Path:
    """The initial model; of several nodes the leading one fetches it, below --out, which all of them see."""
    from experiments.runs.registry import is_registered, model_folder
    from pretrain.storage import place

    if is_registered(text) and nodes.leads:
        return model_folder(text, out, shared=nodes.count > 1)
    return Path(text) if is_registered(text) else place(text)


def _train_stages(job: StageJob, stage: str, wish: Wish) -> None:
    """Train one or "all" stages. Raises ValueError for an unknown one, and as `_check_before_training`."""
    names, nodes = list(job.recipe.pretrain.stages), job.nodes
    if stage != "all" and stage not in names:
        raise ValueError(f"--stage: unknown stage {stage!r}; {nearest(stage, [*names, 'all'])}")
    if nodes.count > 1 and wish.replaces:
        raise ValueError(
            f"{'--move-aside' if wish.aside else '--no-resume'}: the other nodes cannot know of it; move the "
            "stage's folder away, then start all nodes"
        )
    chosen = names if stage == "all" else [stage]
    with ExitStack() as opened:
        if nodes.leads:
            _hold([name for name in chosen if job.layout.pretrain(name).is_dir()], job, opened)
            _check_before_training(chosen, job, wish)
            _hold(chosen, job, opened)
        for name in chosen:
            here = dataclasses.replace(
                job,
                nodes=nodes.at(names.index(name)),
                init_from=job.init_from if name == chosen[0] else None,
            )
            if nodes.leads:
                _train(name, here, wish, opened)
            elif not _join(name, here):
                return


def _hold(stages: list[str], job: StageJob, opened: ExitStack) -> None:
    """Hold the folders of all stages to the end of the command. Raises ValueError where another has one."""
    from pretrain.launch.training_lock import alone

    for name in stages:
        opened.enter_context(alone(job.layout.pretrain(name), option="--out"))


def _check_before_training(stages: list[str], job: StageJob, wish: Wish) -> None:
    """Check what the stages need, before anything is replaced. Raises ValueError or FileNotFoundError."""
    from experiments.continuing import check_all
    from experiments.pipeline.pretrain import codec_id_of, latents_of
    from pretrain.data.stream.sample_set import check_sets
    from pretrain.launch.torchrun import check_port

    config = job.recipe.pretrain
    for stage in stages:
        check_sets(latents_of(config, job.layout), config.stage(stage))
    if job.nproc:
        config.local_batch(job.nproc * job.nodes.count)
    if job.port:
        check_port(job.port)
    for stage in stages:
        if config.latents:
            codec_id_of(config, stage, job.layout)
    check_all(_present(stages, job), job, wish)


def _present(stages: list[str], job: StageJob) -> list[TrainingRun]:
    """Those of the stages that hold something and whose parent is there, to look at before the first one."""
    from experiments.pipeline.pretrain import stage_run_of
    from pretrain.launch.torchrun import IDENTITY

    found: list[TrainingRun] = []
    for stage in stages:
        here = dataclasses.replace(job, init_from=job.init_from if stage == stages[0] else None)
        names = list(job.recipe.pretrain.stages)
        parents = [job.layout.model(name) for name in names[: names.index(stage)][-1:]]
        folder = job.layout.pretrain(stage)
        startable = here.init_from or all((parent / "config.json").is_file() for parent in parents)
        if startable and ((folder / "model").is_dir() or (folder / IDENTITY).is_file()):
            found.append(stage_run_of(here, stage))
    return found


def _train(stage: str, job: StageJob, wish: Wish, opened: ExitStack) -> None:
    """Train a stage unless it is finished; the first one that trains begins the run of the command."""
    from experiments.continuing import decide
    from experiments.recipes.load import as_plain
    from experiments.runs.invocation import invocation
    from experiments.stages import run_stage, training_of

    name = f"pretrain_{stage}"
    decision = decide(training_of(name, job), job, wish)
    if decision.train:
        what, asked = f"pretrain {job.recipe.name}", as_plain(job.recipe.pretrain)
        opened.enter_context(invocation(what, job.layout, job.root, asked))
        run_stage(name, job, decision.go_on, decision.notes)
        print(f"{stage}: finished; its model is {job.layout.model(stage)}")


def _join(stage: str, job: StageJob) -> bool:
    """Run this node's ranks of a stage; False where it was interrupted, which the leading node reports."""
    from pretrain.launch.launch import join_stage

    steps = job.recipe.pretrain.stage(stage).steps
    result = join_stage(job.layout.pretrain(stage), job.ranks, job.nodes, steps)
    print(f"{stage}: {result.status} at step {result.step}")
    return result.status == "finished"
