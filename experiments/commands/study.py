"""`nava study ...`: experiments over many trainings."""

from __future__ import annotations

from pathlib import Path

from experiments.commands.options import RecipeName, Settings, recipe_for
from experiments.layout import Layout


def paradigms(recipe: RecipeName = "mini", /, settings: Settings = (), out: Path = Path("out"), judge: Path | None = None) -> None:
    """Train NAVA, a dual tower and a fully unified model of one size on the same data, at equal steps and at equal FLOPs; compare.

    Needs the data of `nava demo` in OUT. Writes OUT/study/paradigms.json, .md and .png; started again, it goes on where it stopped.
    --judge is a trained sync network, OUT/syncnet/judge where there is one. Sizes: --set study.seeds=1 --set study.num_prompts=16.
    """
    loaded = recipe_for(recipe, settings)
    from experiments.study.run import StudyRecipe, study_paradigms

    study_paradigms(StudyRecipe(loaded.study, loaded.pretrain, loaded.generate), Layout(out=out), judge or out / "syncnet" / "judge")
    print((out / "study" / "paradigms.md").read_text())
    print(f"report  {out / 'study' / 'paradigms.md'}, .json and .png")
