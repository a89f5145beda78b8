"""Verbs that run one stage of the pipeline, outside DVC."""

from __future__ import annotations

from pathlib import Path

from experiments.commands.options import RecipeName, Settings, recipe_for
from experiments.layout import Layout


def corpus(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Render the corpus: clips, sounds, references, prompt sets and manifests, into OUT/corpus."""
    _run("corpus", recipe, settings, out)


def curate(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Curate the high-quality pairs with submodlib, into OUT/curated."""
    _run("curate", recipe, settings, out)


def codec(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Fit the codecs on OUT/corpus and store them with their reconstruction error, into OUT/codec."""
    _run("codec", recipe, settings, out)


def syncnet(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Train the sync network of the reward and that of the judge, and evaluate both, into OUT/syncnet."""
    _run("syncnet", recipe, settings, out)


def rollout(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Sample several clips of each alignment prompt from the pretrained model, into OUT/rollouts."""
    _run("rollout", recipe, settings, out)


def curate_prompts(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Curate the prompts that alignment trains on: diverse ones with low reward of their clips in
    OUT/rollouts, into OUT/chosen."""
    _run("curate_prompts", recipe, settings, out)


def votes(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """SIMULATED raters vote on OUT/rollouts by the scores of the judges: votes.jsonl and pairs.jsonl, into
    OUT/votes.

    Votes of people have the same format: `nava gsb export VOTES --clips OUT/rollouts` makes pairs of them.
    """
    _run("votes", recipe, settings, out)


def evaluate(
    recipe: RecipeName = "mini",
    /,
    settings: Settings = (),
    out: Path = Path("out"),
    reports: Path = Path("reports"),
) -> None:
    """Score real, codec and generated clips (OUT/scores) and summarise, into REPORTS/demo.json."""
    _run("score", recipe, settings, out, reports)
    _run("evaluate", recipe, settings, out, reports)


def report(
    recipe: RecipeName = "mini",
    /,
    settings: Settings = (),
    out: Path = Path("out"),
    reports: Path = Path("reports"),
) -> None:
    """Write REPORTS/demo.html from the measurements and the clips."""
    _run("report", recipe, settings, out, reports)


def _run(
    stage: str, recipe: str, settings: tuple[str, ...], out: Path, reports: Path = Path("reports")
) -> None:
    from experiments.job import StageJob
    from experiments.stages import run_stage

    run_stage(stage, StageJob(recipe=recipe_for(recipe, settings), layout=Layout(out=out, reports=reports)))
