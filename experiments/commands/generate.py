"""`nava generate`: prompts in the public inference format to clips."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import SetOptions, recipe_for

if TYPE_CHECKING:
    from pretrain.model.checkpoint import ModelFolder
    from pretrain.model.shell import AVTransformer

ModelToUse = Annotated[
    Path,
    tyro.conf.arg(
        metavar="FOLDER",
        help="exported model: a folder, or models:/NAME@ALIAS or /VERSION of MLflow's registry",
    ),
]
CodecOfModel = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FOLDER", help="codec, given likewise; default out/codec, or that of a registered model"
    ),
]


AdaptersToUse = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        metavar="FOLDER[=SCALE]",
        help="LoRA adapter of that model, of `nava finetune` or `nava align`, merged in memory; may be "
        "repeated, their updates add up; a scale of 0 changes nothing",
    ),
]


def generate(
    prompts: Annotated[Path, tyro.conf.Positional],
    /,
    to: Path = Path("clips"),
    recipe: str = "mini",
    model: ModelToUse = Path("out/pretrain/stage3/model"),
    codec: CodecOfModel = None,
    adapter: AdaptersToUse = (),
    limit: int | None = None,
    settings: SetOptions = (),
) -> None:
    """Generate one mp4 with sound and one wav for each row of a prompts JSONL file ({"prompt", "image_path",
    "spk_wavs"}).

    --to is the folder for the clips, --limit the number of rows. All rows are checked as by `nava prompt
    check --files` before the model is loaded; words that the mini was never trained on are warned of. Model,
    codec and prompts are recorded: `nava lineage CLIP` names them.

    A registered model and its codec are fetched once, from the MLflow that MLFLOW_TRACKING_URI names, so that
    any folder will do: nava generate prompts.jsonl --model models:/nava-mini@aligned --to clips

    nava generate prompts.jsonl --adapter my/voice/adapter=0.8 --adapter my/look/adapter
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    config = recipe_for(recipe, settings).generate
    from experiments.runs.registry import model_and_codec, model_folder, registered_tags

    _require(prompts, "give a prompts JSONL file")
    model, codec = model_and_codec(model, codec, Path("out"), Path("out/codec"))
    _require(model, "train one (`nava demo`) or give --model")
    _require(codec, "fit one or give --codec")
    import pretrain.generate
    from experiments.layout import Layout
    from experiments.prompt_words import print_warnings, word_warnings
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run
    from finetune.adapters import apply_adapters, check_adapter, parse_scaled

    given = [parse_scaled(text) for text in adapter]
    adapters = [replace(one, folder=model_folder(one.folder, Path("out"))) for one in given]
    for one in adapters:
        check_adapter(one.folder, model)

    def adapt(network: AVTransformer, described: ModelFolder) -> dict[str, str]:
        return apply_adapters(network, described, model, config.weights, adapters)

    print_warnings(prompts, word_warnings(prompts, codec, limit))
    inputs, start_s = (
        digests_of_inputs(model, codec, prompts, *(one.folder for one in adapters)),
        time.monotonic(),
    )
    pretrain.generate.generate(config, model, codec, prompts, to, limit, adapt)
    tags = {"nava.recipe": recipe, "nava.output": str(to), **registered_tags(model, codec)}
    described = {**as_plain(config), "limit": limit, **({"adapters": list(adapter)} if adapter else {})}
    record_run("generate", described, tags, Layout(), Path(), inputs, [to], time.monotonic() - start_s)
    print(f"clips in {to}")


def _require(path: Path, hint: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {hint}")
