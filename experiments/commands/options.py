"""Options that several verbs share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

RecipeName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE", help="name or package.module.function")
]
SetOptions = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="override a field of the recipe; may be repeated"),
]
InsecureRay = Annotated[bool, tyro.conf.arg(help="take a Ray without a token, where anyone can run code")]
JsonFlag = Annotated[bool, tyro.conf.arg(name="json", help="print the result as JSON")]
ResumeFlag = Annotated[
    bool,
    tyro.conf.arg(help="go on with what is there; --no-resume starts over, what is there goes to OUT/.trash"),
]
AnywayFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="go on although settings, inputs or parents differ; the record says so. What is finished is kept"
    ),
]
AsideFlag = Annotated[
    bool, tyro.conf.arg(help="where those differ, move what is there to OUT/.trash and start over")
]
NumNodes = Annotated[
    int,
    tyro.conf.arg(help="number of machines; each runs this command and sees the same folder of the result"),
]
Rendezvous = Annotated[
    str, tyro.conf.arg(metavar="HOST:PORT", help="rendezvous: address of the first machine")
]
NodeRank = Annotated[
    int, tyro.conf.arg(help="rank of this machine; -1 = from Slurm's or Kubeflow Trainer's environment")
]
ProfileSteps = Annotated[
    str,
    tyro.conf.arg(
        metavar="STEPS",
        help="steps to profile, such as 20-22 or 20-22,500: traces of torch's profiler under the result's "
        "profile_traces/, memory snapshots of GPUs under memory_snapshot/",
    ),
]
ProfileRanks = Annotated[str, tyro.conf.arg(metavar="RANKS", help="ranks that --profile is of: 0,8, or all")]
MaxRestarts = Annotated[int, tyro.conf.arg(help="restarts of all ranks after one has died")]


def profiled(section: Any, steps: str, ranks: str) -> Any:
    """A recipe's training section with --profile and --profile-ranks. Raises ValueError where they are no
    steps or ranks."""
    if not steps:
        return section
    monitor = dataclasses.replace(section.monitor, profile=steps, profile_ranks=ranks)
    return dataclasses.replace(section, monitor=monitor)


def recipe_for(name: str, settings: tuple[str, ...]) -> Any:
    """The recipe with the overrides of ./params.yaml (where there is one, and it is for this recipe) and of
    --set."""
    from experiments.recipes.load import load_recipe

    params = Path("params.yaml")
    return load_recipe(name, params if params.is_file() else None, settings)
