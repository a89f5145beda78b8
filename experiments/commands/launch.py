"""`nava launch`: a recipe's training or a fine-tuning as a script, an sbatch file or a TrainJob, shown or
submitted."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from experiments.commands.options import RecipeName, SetOptions, recipe_for
from experiments.jobs.request import Finetuning

if TYPE_CHECKING:
    from experiments.jobs.request import Request

T = TypeVar("T")

Gpus = Annotated[int, tyro.conf.arg(help="ranks of each node")]
RankEnvironment = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="NAME[=VALUE]",
        help="environment of the ranks, NAME alone as here (secrets); may be given again",
    ),
]
From = Annotated[
    str, tyro.conf.arg(name="from", help="a model folder (of `nava import`) that the first stage starts from")
]
Folder = Annotated[Path, tyro.conf.arg(help="where the rendered file is written")]
DryRun = Annotated[
    bool,
    tyro.conf.arg(
        help="print what would be submitted, and write and submit nothing; exit code 1 where a folder, "
        "set of latents or bucket that it names is not there, seen from here"
    ),
]
Finetune = Annotated[Finetuning, tyro.conf.arg(name="finetune")]
NO_FINETUNING = Finetuning()
FOUND_MISSING = 1


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
    env: RankEnvironment = (),
    finetune: Finetune = NO_FINETUNING,
    settings: SetOptions = (),
    to: Folder = Path("out/launch"),
    dry_run: DryRun = False,
) -> int:
    """One machine: a shell script. Without --dry-run it is written to --to and started.

    With --finetune.clips it runs `nava finetune` on them, else `nava pretrain`.

      nava launch node nava_6b --out /data/run --set pretrain.latents=/data/latents --dry-run
      nava launch node nava_6b --finetune.clips rows.jsonl --finetune.model base --finetune.codec codec
    """
    from experiments.jobs.node import render

    request = _request(locals())
    _check_passed(request, dry_run)
    text = render(request)
    told = _show_or_submit(text, to / f"{request.name}.sh", ["bash"], dry_run)
    return _looked_for(request) if dry_run else told


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
    cpus_per_task: Annotated[
        int, tyro.conf.arg(help="of each node's task, which holds all of its ranks; 0 = the site's default")
    ] = 0,
    log: str = "%x-%j.log",
    image: str = "",
    mounts: str = "",
    env: RankEnvironment = (),
    finetune: Finetune = NO_FINETUNING,
    settings: SetOptions = (),
    to: Folder = Path("out/launch"),
    dry_run: DryRun = False,
) -> int:
    """Slurm: an sbatch file. When the job is preempted or its time is up, the ranks write a checkpoint and
    the job requeues itself.

    --grace-s is how many seconds before the end the ranks get SIGTERM. --image and --mounts are of srun's
      containers (pyxis). With --finetune.clips the job runs `nava finetune` on them, else `nava pretrain`;
      the first node encodes clips that are not encoded, the others wait for up to two hours.

      nava launch slurm nava_6b --nodes 16 --from /shared/warm --out /shared/run --dry-run
      nava launch slurm nava_6b --nodes 2 --finetune.clips /shared/rows.jsonl --finetune.to /shared/voice \\
        --finetune.model /shared/base --finetune.codec /shared/codec --set finetune.base=/shared/latents
    """
    from experiments.jobs.slurm import SlurmOptions, render

    request = _request(locals())
    _check_passed(request, dry_run)
    options = _from_arguments(SlurmOptions, locals())
    text = render(request, options)
    told = _show_or_submit(text, to / f"{request.name}.sbatch", ["sbatch"], dry_run, "where Slurm is")
    if not dry_run:
        return told
    found = _looked_for(request, mounts=mounts)
    if not cpus_per_task:
        print(
            "note: --cpus-per-task is not set, so the site's default holds (often 1) for the "
            f"{gpus_per_node} ranks of a node and their loaders",
            file=sys.stderr,
        )
    return found


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
    env: RankEnvironment = (),
    finetune: Finetune = NO_FINETUNING,
    secret: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=SECRET:KEY")
    ] = (),
    settings: SetOptions = (),
    to: Folder = Path("out/launch"),
    dry_run: DryRun = False,
) -> int:
    """Kubernetes: a TrainJob of Kubeflow Trainer v2. A lost pod is recreated by its Job and rejoins from the
    last checkpoint.

    Each call makes a TrainJob of its own, RECIPE-XXXXX (`kubectl create`), and refuses where one that has not
    ended trains into the same folder; once it has, the same command goes on from its last checkpoint.
    --claim and --mount are the storage that all nodes see; --trainer is the version of Kubeflow Trainer in
      the cluster (2.2 = or later). With --finetune.clips the pods run `nava finetune` on them, else `nava
      pretrain`; the first one encodes clips that are not encoded.
    """
    from experiments.jobs.kubernetes import KubernetesOptions, render
    from experiments.jobs.scheduler import check_command
    from experiments.jobs.trainjobs import check_free

    request = _request(locals())
    options = _from_arguments(KubernetesOptions, {**locals(), "secrets": secret})
    text, where = render(request, options), "where your cluster is reached"
    if not dry_run:
        check_command("kubectl", where)
        check_free(request, options, text)
    command, file = ["kubectl", "create", "-f"], to / f"{request.name}.yaml"
    told = _show_or_submit(text, file, command, dry_run, where)
    return _looked_for(request, elsewhere=True) if dry_run else told


def _request(arguments: Mapping[str, Any]) -> Request:
    """What is launched. Raises ValueError for what would stop the ranks, before anything waits in a queue."""
    from experiments.jobs.request import Request

    request = _from_arguments(Request, arguments)
    recipe = recipe_for(request.recipe, request.settings)
    if request.tunes:
        recipe.finetune.check_ranks(request.world_size)
        return request
    if request.stage != "all":
        recipe.pretrain.stage(request.stage)
    recipe.pretrain.local_batch(request.world_size)
    return request


def _looked_for(request: Request, elsewhere: bool = False, mounts: str = "") -> int:
    """Print what the request names and is not there; the exit code of a dry run."""
    from experiments.jobs.named import missing

    recipe = recipe_for(request.recipe, request.settings)
    found = missing(request, recipe.pretrain, elsewhere, mounts, recipe.finetune)
    for line in found:
        print(f"missing: {line}", file=sys.stderr)
    return FOUND_MISSING if found else 0


def _check_passed(request: Request, dry_run: bool) -> None:
    """Raises ValueError for a variable that is to be passed on and is not there."""
    missing = [name for name in request.passed if name not in os.environ]
    if missing and not dry_run:
        raise ValueError(f"--env {missing[0]}: not in this environment; export it, or give a value")


def _from_arguments(kind: type[T], arguments: Mapping[str, Any]) -> T:
    """The dataclass with those of a verb's arguments that are its fields."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in arguments.items() if name in names})


def _show_or_submit(text: str, file: Path, command: list[str], dry_run: bool, where: str = "") -> int:
    """Print the rendered text, or write it to `file` and run `command` on that. `where` the command is
    available is part of the error if it is not."""
    from experiments.jobs.scheduler import check_command, submit, write

    if dry_run:
        print(text, end="")
        return 0
    if where:
        check_command(command[0], where)
    return submit([*command, str(write(file.parent, file.name, text))])
