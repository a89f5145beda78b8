"""`nava gsb join`: clips of several models as one rollout store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import tyro

Stores = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="MODEL=STORE", help="stores of `nava rollout --mp4` on the same prompts"),
]
Target = Annotated[Path, tyro.conf.arg(metavar="STORE", help="folder of the new store")]
PerPrompt = Annotated[int, tyro.conf.arg(help="clips of each model and prompt, the first ones of its store")]


def join(stores: Stores, /, *, to: Target, clips_per_prompt: PerPrompt = 1) -> None:
    """Join the clips of several models into one rollout store, so that votes between models can train.

    gsb_dpo learns from latents of one store; a store of `nava rollout` is of one model. Latents and mp4 files
    are copied as they are, the clips are called by their models' names. Prompts that not all stores have are
    left out.
      nava gsb join pretrained=clips/pretrained aligned=clips/aligned --to clips/both
      nava gsb serve clips/both --votes surveys/votes.db --ours aligned
      nava gsb export --survey surveys/votes.db --clips clips/both --out pairs.jsonl
      nava align mini --set align.sequence=[gsb_dpo] --pairs pairs.jsonl --clips clips/both --to my/align
    """
    from experiments.commands.gsb import index_of
    from experiments.layout import Layout
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run
    from finetune.joined_store import join_stores

    if clips_per_prompt < 1:
        raise ValueError(f"--clips-per-prompt {clips_per_prompt}: expected at least 1")
    named = [index_of(text, "") for text in stores]
    for text, (model, _) in zip(stores, named, strict=True):
        if model is None:
            raise ValueError(f"{text}: expected MODEL=STORE, a name for the model of each store")
    start_s = time.monotonic()
    read = digests_of_inputs(*(path for _, path in named))
    made = join_stores([(model, path) for model, path in named if model], to, clips_per_prompt)
    tags, seconds = {"nava.output": str(to)}, time.monotonic() - start_s
    config = {"models": [model for model, _ in named], "clips_per_prompt": clips_per_prompt}
    record_run("join", config, tags, Layout(), Path(), read, [to], seconds, whole=True)
    prompts = len({row["case_id"] for row in made.places.values()})
    print(f"{to}: {len(made.places)} clips of {prompts} prompts; to vote on them: nava gsb serve {to}")
