"""Verbs that run one stage of the pipeline, outside DVC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import RecipeName, Settings, recipe_for
from experiments.layout import Layout
from pretrain.config import nearest

if TYPE_CHECKING:
    from experiments.stages import Job


def corpus(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Render the corpus: clips, sounds, references, prompt sets and manifests, into OUT/corpus."""
    _run("corpus", recipe, settings, out)


def curate(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Choose the curated pairs with submodlib, into OUT/curated."""
    _run("curate", recipe, settings, out)


def codec(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Fit the codecs on OUT/corpus and store them with their reconstruction error, into OUT/codec."""
    _run("codec", recipe, settings, out)


def encode(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Encode every set of the corpus, into OUT/latents."""
    _run("encode", recipe, settings, out)


def syncnet(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Train the sync network that rewards and the one that judges, and measure both, into OUT/syncnet."""
    _run("syncnet", recipe, settings, out)


def rollout(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Make several clips of each training prompt of the alignment with the pretrained model, for votes, into OUT/rollouts."""
    _run("rollout", recipe, settings, out)


def curate_prompts(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Choose the prompts that alignment trains on: diverse ones whose clips in OUT/rollouts earn little yet, into OUT/chosen."""
    _run("curate_prompts", recipe, settings, out)


def votes(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out")) -> None:
    """Have the SIMULATED panel vote on OUT/rollouts by what the judges measure: votes.jsonl and pairs.jsonl, into OUT/votes.

    People's votes come in the same format: `nava gsb export VOTES --clips OUT/rollouts` makes pairs of them.
    """
    _run("votes", recipe, settings, out)


def evaluate(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out"), reports: Path = Path("reports")) -> None:
    """Score real, codec and generated clips (OUT/scores) and sum the scores up, into REPORTS/demo.json."""
    _run("score", recipe, settings, out, reports)
    _run("evaluate", recipe, settings, out, reports)


def report(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out"), reports: Path = Path("reports")) -> None:
    """Write REPORTS/demo.html from the measurements and the clips."""
    _run("report", recipe, settings, out, reports)


def pretrain(
    recipe: RecipeName,
    /,
    stage: str = "all",
    nproc: int = 0,
    port: int = 0,
    settings: Settings = (),
    out: Path = Path("out"),
    resume: Annotated[bool, tyro.conf.arg(help="go on from an interrupted run; --no-resume starts the stage over")] = True,
) -> None:
    """Train the stages of a recipe one after another, or one of them; each starts from the one before it.

    --nproc 0 is one rank per GPU, or two ranks where there is none; --port 0 is any free port for torchrun.
    A run that was interrupted goes on from its last checkpoint.
    """
    loaded = recipe_for(recipe, settings)
    names = list(loaded.pretrain.stages)
    if stage != "all" and stage not in names:
        raise ValueError(f"--stage: unknown stage {stage!r}; {nearest(stage, [*names, 'all'])}")
    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    from experiments.stages import Job

    job = Job(recipe=loaded, layout=Layout(out=out), nproc=nproc, port=port)
    chosen = names if stage == "all" else [stage]
    _check_before_training(chosen, job)
    for name in chosen:
        _train(name, job, resume)


def _check_before_training(stages: list[str], job: Job) -> None:
    """What would stop a stage, before the first one replaces anything. Raises ValueError or FileNotFoundError."""
    from pretrain.data.sample_set import check_sets
    from pretrain.torchrun import check_port

    for stage in stages:
        check_sets(job.layout.latents, job.recipe.pretrain.stage(stage))
    if job.nproc:
        job.recipe.pretrain.local_batch(job.nproc)
    if job.port:
        check_port(job.port)


def _train(stage: str, job: Job, resume: bool) -> None:
    from experiments.stages import run_stage

    name = f"pretrain_{stage}"
    if must_train(name, stage, job.layout.pretrain(stage), job, resume, f" ({job.recipe.pretrain.flavor} asked for)"):
        run_stage(name, job)


def must_train(name: str, said: str, trained: Path, job: Job, resume: bool, asked: str = "") -> bool:
    """True to train or go on, False to keep what is finished. Raises ValueError where something else would be replaced: nobody loses
    a trained model by a command with other numbers."""
    from experiments.runs import can_go_on, unchanged
    from experiments.stages import config_of

    layout, config = job.layout, config_of(name, job.recipe)
    if not resume:
        (layout.runs / f"{name}.running.json").unlink(missing_ok=True)
    elif unchanged(name, config, layout, job.root):
        print(f"{said}: finished, with these inputs and settings; kept (--no-resume trains it again)")
        return False
    elif _holds_training(trained) and not can_go_on(name, config, layout, job.root):
        raise ValueError(
            f"{trained}: trained with other inputs or settings{asked}; give --no-resume to replace it, or --out for another folder"
        )
    return True


def _holds_training(folder: Path) -> bool:
    return (folder / "model").is_dir() or any(folder.glob("checkpoint/step-*/.metadata"))


def _run(stage: str, recipe: str, settings: tuple[str, ...], out: Path, reports: Path = Path("reports")) -> None:
    from experiments.stages import Job, run_stage

    run_stage(stage, Job(recipe=recipe_for(recipe, settings), layout=Layout(out=out, reports=reports)))
