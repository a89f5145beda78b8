"""`nava align report`: the closing page of a finished alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.score import RewardSettings


def align_report(
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    prompts: Annotated[
        Path | None, tyro.conf.arg(help="held-out prompts JSONL; default those that the run held out")
    ] = None,
    judges: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="NAME", help="metrics that were not optimised, beside those of rubric.watched"),
    ] = (),
    settings: RewardSettings = (),
    limit: Annotated[int | None, tyro.conf.arg(help="number of prompts")] = None,
    examples: Annotated[int, tyro.conf.arg(help="prompts whose clips are on the page")] = 12,
) -> None:
    """Compare a finished alignment with the model it started from, into FOLDER-report/report.html.

    Clips of the held-out prompts before and after, from the same noise by the deployed sampler; rewards and
    judges with 95 % intervals, guardrails, curves over the rounds, and clips side by side: largest losses,
    largest gains and drawn ones. Clips and scores that are there are kept, so an interrupted call goes on.
    """
    from experiments.report.closing import closing_report
    from experiments.report.closing_run import ClosingOptions, closing_inputs, read_run
    from experiments.scoring.config import reward_settings

    run = read_run(folder)
    names = [*run.scorer[1].get("weights", {}), *run.config.rubric.watched, *judges]
    options = ClosingOptions(
        prompts=prompts,
        judges=judges,
        options=reward_settings(settings, names),
        limit=limit,
        examples=examples,
    )
    print(closing_report(closing_inputs(run, folder, options)))
