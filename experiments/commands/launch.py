"""`nava launch`: a recipe's training as a script, an sbatch file or a TrainJob, shown or submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.commands.options import RecipeName, Settings

Gpus = Annotated[int, tyro.conf.arg(help="ranks of each node")]
Environment = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="NAME=VALUE", help="environment of the ranks; may be given again"),
]
From = Annotated[
    str, tyro.conf.arg(name="from", help="a model folder (of `nava import`) that the first stage starts from")
]
Folder = Annotated[Path, tyro.conf.arg(help="where the rendered file is written")]
DryRun = Annotated[bool, tyro.conf.arg(help="print what would be submitted, and write and submit nothing")]


def node(
    recipe: RecipeName,
    /,
    gpus_per_node: Gpus = 8,
    stage: str = "all",
    init_from: From = "",
    out: str = "out",
    max_restarts: int = 3,
    grace_s: int = 120,
    workdir: str = "",
    env: Environment = (),
    settings: Settings = (),
    to: Folder = Path("out/launch"),
    dry_run: DryRun = False,
) -> int:
    """One machine: a shell script. Without --dry-run it is written to --to and started."""
    from experiments.jobs.node import render
    from experiments.jobs.request import Request

    request = Request(
        recipe=recipe,
        gpus_per_node=gpus_per_node,
        stage=stage,
        settings=settings,
        init_from=init_from,
        out=out,
        max_restarts=max_restarts,
        grace_s=grace_s,
        workdir=workdir,
        env=env,
    )
    _check(request.recipe, settings, stage, request.world_size)
    text = render(request)
    return _show_or_submit(text, to / f"{request.name}.sh", ["bash"], dry_run)


def slurm(
    recipe: RecipeName,
    /,
    nodes: int = 1,
    gpus_per_node: Gpus = 8,
    stage: str = "all",
    init_from: From = "",
    out: str = "out",
    max_restarts: int = 3,
    grace_s: int = 120,
    workdir: str = "",
    partition: str = "",
    account: str = "",
    qos: str = "",
    time: str = "",
    constraint: str = "",
    cpus_per_task: int = 0,
    log: str = "%x-%j.log",
    image: str = "",
    mounts: str = "",
    env: Environment = (),
    settings: Settings = (),
    to: Folder = Path("out/launch"),
    dry_run: DryRun = False,
) -> int:
    """Slurm: an sbatch file. When the job is preempted or its time is up, the ranks write a checkpoint and
    the job requeues itself.

    --grace-s is how long before the end they are told. --image and --mounts are of srun's containers (pyxis).
    """
    from experiments.jobs.request import Request
    from experiments.jobs.slurm import SlurmOptions, render

    request = Request(
        recipe=recipe,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        stage=stage,
        settings=settings,
        init_from=init_from,
        out=out,
        max_restarts=max_restarts,
        grace_s=grace_s,
        workdir=workdir,
        env=env,
    )
    options = SlurmOptions(
        partition=partition,
        account=account,
        qos=qos,
        time=time,
        constraint=constraint,
        cpus_per_task=cpus_per_task,
        log=log,
        image=image,
        mounts=mounts,
    )
    _check(request.recipe, settings, stage, request.world_size)
    text = render(request, options)
    return _show_or_submit(text, to / f"{request.name}.sbatch", ["sbatch"], dry_run, "where Slurm is")


def kubernetes(
    recipe: RecipeName,
    /,
    image: str = "",
    nodes: int = 1,
    gpus_per_node: Gpus = 8,
    stage: str = "all",
    init_from: From = "",
    out: str = "out",
    max_restarts: int = 3,
    grace_s: int = 120,
    workdir: str = "",
    namespace: str = "default",
    runtime: str = "torch-distributed",
    claim: str = "",
    mount: str = "",
    cpu: str = "",
    memory: str = "",
    gpu_resource: str = "nvidia.com/gpu",
    trainer: Literal["2.1", "2.2"] = "2.2",
    env: Environment = (),
    secret: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=SECRET:KEY")
    ] = (),
    settings: Settings = (),
    to: Folder = Path("out/launch"),
    dry_run: DryRun = False,
) -> int:
    """Kubernetes: a TrainJob of Kubeflow Trainer v2. A pod that is lost is made again by its Job and rejoins
    from the last checkpoint.

    --claim and --mount are the storage that all nodes see; --trainer is the version of Kubeflow Trainer in
      the cluster (2.2 = or later).
    """
    from experiments.jobs.kubernetes import KubernetesOptions, render
    from experiments.jobs.request import Request

    request = Request(
        recipe=recipe,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        stage=stage,
        settings=settings,
        init_from=init_from,
        out=out,
        max_restarts=max_restarts,
        grace_s=grace_s,
        workdir=workdir,
        env=env,
    )
    options = KubernetesOptions(
        image=image,
        namespace=namespace,
        runtime=runtime,
        claim=claim,
        mount=mount,
        cpu=cpu,
        memory=memory,
        gpu_resource=gpu_resource,
        secrets=secret,
        trainer=trainer,
    )
    _check(request.recipe, settings, stage, request.world_size)
    text = render(request, options)
    return _show_or_submit(
        text,
        to / f"{request.name}.yaml",
        ["kubectl", "apply", "-f"],
        dry_run,
        "where your cluster is reached",
    )


def _show_or_submit(text: str, file: Path, command: list[str], dry_run: bool, where: str = "") -> int:
    """Print what was rendered, or write it to `file` and give that to `command`, which must be here if
    `where` says where it is."""
    from experiments.jobs.scheduler import check_command, submit, write

    if dry_run:
        print(text, end="")
        return 0
    if where:
        check_command(command[0], where)
    return submit([*command, str(write(file.parent, file.name, text))])


def _check(recipe: str, settings: tuple[str, ...], stage: str, world_size: int) -> None:
    """What would stop the ranks, before anything waits in a queue. Raises ValueError."""
    from experiments.commands.options import recipe_for

    config = recipe_for(recipe, settings).pretrain
    if stage != "all":
        config.stage(stage)
    config.local_batch(world_size)
