"""`nava submit`: a stage of the pipeline on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.options import InsecureRay, RecipeName

Address = Annotated[
    str,
    tyro.conf.arg(
        metavar="http://HOST:8265", help="the cluster's dashboard; empty = RAY_ADDRESS, or this machine"
    ),
]
JobEnvironment = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="NAME=VALUE",
        help="environment of the job, readable by all users of the cluster; may be repeated",
    ),
]


def submit(
    recipe: RecipeName = "mini",
    /,
    stage: Annotated[
        str, tyro.conf.arg(help="stage of dvc.yaml; stages before it run if they are out of date")
    ] = "report",
    address: Address = "",
    workdir: Annotated[
        str, tyro.conf.arg(help="path of this repository on the cluster; empty = as here")
    ] = "",
    python: Annotated[str, tyro.conf.arg(help="Python interpreter on the cluster; empty = as here")] = "",
    env: JobEnvironment = (),
    grace_s: Annotated[int, tyro.conf.arg(help="seconds for a checkpoint after SIGTERM")] = 120,
    max_requeues: Annotated[int, tyro.conf.arg(help="resubmissions of an interrupted job")] = 3,
    insecure_ray: InsecureRay = False,
) -> None:
    """Run `dvc repro STAGE` as a Ray job, named by the id that its run has in MLflow. The recipe and its
    numbers are params.yaml's.

    `ray get-auth-token --generate`, then `RAY_AUTH_MODE=token ray start --head`, make this machine a cluster.
    All machines must see this repository and its out/ (a shared disk). After SIGTERM to any process of it
    the job writes a checkpoint and is submitted again as ID-2, ID-3 ...; `ray job stop` ends it for good.
    """
    from experiments.jobs.submit import Submission, check, submit_stage
    from experiments.recipes.load import load_recipe, read_params
    from orchestration.launch import connect

    params = Path("params.yaml")
    submission = Submission(
        recipe=load_recipe(recipe, params),
        stage=stage,
        workdir=workdir or str(Path().resolve()),
        python=python or sys.executable,
        env=variables(env),
        grace_s=grace_s,
        max_requeues=max_requeues,
    )
    chosen = str(read_params(params).get("recipe", "mini"))
    check(submission, load_recipe(chosen, params).name)
    cluster = connect(address, insecure_ray)
    job = submit_stage(submission, cluster.jobs)
    lines = {
        "job": job,
        "runs": f"dvc repro {stage}",
        **cluster.commands(job),
        "run": f"nava lineage {job.split('-')[0]}",
    }
    print("\n".join(f"{name:<8}{text}" for name, text in lines.items()))


def variables(given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE as a mapping. Raises ValueError, without the value."""
    from experiments.jobs.secret_names import check_no_secret

    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError("--env: expected NAME=VALUE")
        check_no_secret(
            name, value, "set it where the cluster's nodes start, or in a file that only you read"
        )
        found[name] = value
    return found
