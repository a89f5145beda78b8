"""`nava generate`: prompts in the public inference format to clips."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.options import SetOptions, recipe_for


def generate(
    prompts: Annotated[Path, tyro.conf.Positional],
    /,
    to: Path = Path("clips"),
    recipe: str = "mini",
    model: Path = Path("out/pretrain/stage3/model"),
    codec: Path = Path("out/codec"),
    limit: int | None = None,
    settings: SetOptions = (),
) -> None:
    """Generate one mp4 with sound and one wav for each row of a prompts JSONL file ({"prompt", "image_path",
    "spk_wavs"}).

    --to is the folder for the clips, --model an exported model, --limit the number of rows. All rows are
    checked as by `nava prompt check --files` before the model is loaded; words that the mini was never
    trained on are warned of. Model, codec and prompts are recorded: `nava lineage CLIP` names them.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    needed = {
        prompts: "give a prompts JSONL file",
        model: "train one (`nava demo`) or give --model",
        codec: "fit one or give --codec",
    }
    for path, hint in needed.items():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; {hint}")
    config = recipe_for(recipe, settings).generate
    import pretrain.generate
    from experiments.layout import Layout
    from experiments.prompt_words import print_warnings, word_warnings
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run

    print_warnings(prompts, word_warnings(prompts, codec, limit))
    inputs, start_s = digests_of_inputs(model, codec, prompts), time.monotonic()
    pretrain.generate.generate(config, model, codec, prompts, to, limit)
    tags, described = {"nava.recipe": recipe, "nava.output": str(to)}, {**as_plain(config), "limit": limit}
    record_run("generate", described, tags, Layout(), Path(), inputs, [to], time.monotonic() - start_s)
    print(f"clips in {to}")
