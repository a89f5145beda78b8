"""`nava study ...`: experiments over many trainings."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.commands.options import JsonFlag, RecipeName, SetOptions, recipe_for
from experiments.layout import Layout


def paradigms(
    recipe: RecipeName = "mini",
    /,
    settings: SetOptions = (),
    out: Path = Path("out"),
    judge: Path | None = None,
) -> None:
    """Train NAVA, a dual tower and a fully unified model of one size on the same data, at equal steps and at
    equal FLOPs; compare.

    Needs the data of `nava demo` in OUT. Writes OUT/study/paradigms.json, .md and .png; started again, it
    goes on where it stopped.
    --judge is a trained sync network, OUT/syncnet/judge where there is one. Sizes: --set study.seeds=1 --set
      study.num_prompts=16.
    """
    loaded = recipe_for(recipe, settings)
    from experiments.studies.paradigms.run import StudyRecipe, study_paradigms

    study_paradigms(
        StudyRecipe(loaded.study, loaded.pretrain, loaded.generate, loaded.score),
        Layout(out=out),
        judge or out / "syncnet" / "judge",
    )
    print((out / "study" / "paradigms.md").read_text())
    print(f"report  {out / 'study' / 'paradigms.md'}, .json and .png")


def claims(
    recipe: RecipeName = "mini",
    /,
    settings: SetOptions = (),
    out: Path = Path("out"),
    rows: tuple[str, ...] = (),
    model: Path | None = None,
    only_page: bool = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask the paper's claims of small models, a row each: guidance on a model that is there, design choices
    by trainings at equal FLOPs; verdicts are computed, with the difference that could have been seen.

    Needs the data of `nava demo` in OUT. Writes OUT/study/claims.json, .md and .png with every row, "0 seeds:
    not run" of those without results; started again, it goes on where it stopped.
    --rows: some of them (guidance_text guidance_align guidance_timbre need no training); all by default,
      which trains for days on a few cores. Sizes: --set claims.seeds=1 --set claims.num_prompts=16.
    --model: a model folder for rows that only sample, OUT/pretrain/stage3/model by default.
    --only-page: run nothing, make the page of what is there; also while another command trains.
    """
    from experiments.studies.claims.run import ClaimsRecipe, study_claims

    found, layout = recipe_for(recipe, settings), Layout(out=out)
    sections = ClaimsRecipe(found.name, found.claims, found.pretrain, found.generate, found.score)
    last = list(found.pretrain.stages)[-1]
    study = study_claims(sections, layout, model or layout.model(last), rows, only_page)
    if as_json:
        print(json.dumps(study, indent=1))
        return
    print((out / "study" / "claims.md").read_text())
    print(f"cost    {study['core_hours']:.2f} core-hours so far")
    print(f"report  {out / 'study' / 'claims.md'}, .json and .png")


def objectives(
    recipe: RecipeName = "mini", /, settings: SetOptions = (), out: Path = Path("out"), nproc: int = 0
) -> None:
    """Align by rewards (nft, rwr, awm, grpo) and by votes (gsb_dpo, with ties and without) at one rollout
    budget; compare, with the cost.

    Also nft on the third of the prompts that curation chooses, and on a random third. Needs the data of `nava
    demo` in OUT. Writes OUT/study/objectives.json, .md and .png; started again, it goes on where it stopped.
    --nproc 0 is one rank per GPU, or two ranks where there is none. Sizes: --set objectives.rounds=4 --set
    objectives.seeds=3 --set 'objectives.arms=[pretrained, nft, rwr]'.
    """
    from experiments.job import StageJob
    from experiments.studies.objectives.material import Sections
    from experiments.studies.objectives.run import study_objectives

    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    job = StageJob(recipe=recipe_for(recipe, settings), layout=Layout(out=out), nproc=nproc)
    found = job.recipe
    study_objectives(
        Sections(found.objectives, found.alignment, found.generate, found.rollout, found.votes, found.score),
        job.layout,
        job.ranks,
    )
    print((out / "study" / "objectives.md").read_text())
    print(f"report  {out / 'study' / 'objectives.md'}, .json and .png")


def seeds(
    recipe: RecipeName = "mini",
    /,
    settings: SetOptions = (),
    out: Path = Path("out"),
    seeds: int = 3,
    nproc: int = 0,
    as_json: JsonFlag = False,
) -> None:
    """Align the pretrained model from several seeds by the recipe; measure each, and all together, on the
    held-out prompts.

    Needs a finished `nava demo` in OUT, whose own alignment serves for its seed. Writes OUT/study/seeds.json,
    .md and .png; started again, it goes on where it stopped. --nproc 0 is one rank per GPU, or two ranks
    where there is none.
    """
    from experiments.job import StageJob
    from experiments.studies.seeds import study_seeds

    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    study = study_seeds(
        StageJob(recipe=recipe_for(recipe, settings), layout=Layout(out=out), nproc=nproc), seeds
    )
    if as_json:
        print(json.dumps(study, indent=1))
        return
    print((out / "study" / "seeds.md").read_text())
    print(f"report  {out / 'study' / 'seeds.md'}, .json and .png")
