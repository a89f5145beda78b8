"""`nava import` and `nava export`: published checkpoints to model folders of ours and back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.commands.generate import CodecOfModel, ModelToUse
from experiments.commands.options import JsonFlag, SetOptions, recipe_for
from experiments.layout import Layout
from pretrain.config import nearest

if TYPE_CHECKING:
    from pretrain.convert.importing import Planned

Positional = Annotated[str, tyro.conf.Positional]


def import_published(
    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="nava|wan2.2")],
    path: Positional,
    /,
    to: str = "",
    flavor: str = "nava_6b_published",
    dry_run: Annotated[
        bool, tyro.conf.arg(help="check every key and print the table; nothing is written")
    ] = False,
    dtype: Annotated[
        Literal["source", "fp32", "bf16"], tyro.conf.arg(help="how tensors are stored; source = as they come")
    ] = "source",
    audio_from: Annotated[
        Literal["fresh", "copy"], tyro.conf.arg(help="of wan2.2: audio weights drawn anew, or the video's")
    ] = "fresh",
    seed: Annotated[int, tyro.conf.arg(help="of the weights that are drawn")] = 0,
    dcp: Annotated[
        bool, tyro.conf.arg(help="also write TO/dcp, a torch.distributed.checkpoint of the model")
    ] = False,
    as_json: JsonFlag = False,
    out: Path = Path("out"),
) -> None:
    """Make a model folder of NAVA.safetensors (nava), or a warm start of Wan2.2-TI2V-5B (wan2.2: original or
    diffusers' files).

    PATH is a .safetensors file, an index or a folder, local or a URL. Every key must fit; --dry-run shows
    which becomes which. The folder is what `nava generate --model` and `nava pretrain --from` take. The
    files' sha256 are in its lineage.
    """
    from pretrain.convert.dcp import check_local
    from pretrain.convert.importing import KINDS, ImportConfig, check_destination, plan_import
    from pretrain.storage import place

    if kind not in KINDS:
        raise ValueError(f"unknown layout {kind!r}; {nearest(kind, KINDS)}")
    if not to and not dry_run:
        raise ValueError("--to: give the folder that the model is written to (or --dry-run)")
    config = ImportConfig(kind=kind, flavor=flavor, stored_as=dtype, audio_from=audio_from, seed=seed)
    if dcp and to:
        check_local(place(to))
    planned = plan_import(config, place(path))
    if to:
        check_destination(place(to))
    result: dict[str, Any] = {
        "source": path,
        "layout": planned.layout,
        "flavor": flavor,
        **planned.account.counts(),
    }
    if dry_run:
        keys = planned.account.rows()
        print(json.dumps({**result, "keys": keys}, indent=1)) if as_json else _show(result, keys)
        return
    result |= _tracked_import(planned, path, to, dcp, out)
    print(json.dumps(result, indent=1)) if as_json else _show(result, [])


def export_published(
    layout: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="nava|wan2.2|wan_diffusers")],
    model: Positional,
    /,
    to: str,
    weights: Literal["ema", "model"] = "ema",
    dtype: Annotated[
        Literal["same", "fp32", "bf16"],
        tyro.conf.arg(help="same = as it was imported, of a trained model fp32"),
    ] = "same",
    as_json: JsonFlag = False,
) -> None:
    """Write a model folder in a published layout; an imported model comes out bit for bit as it came in.

    MODEL may be models:/NAME@ALIAS of MLflow. --to is a folder, or a file that ends in .safetensors. wan2.2
    and wan_diffusers take the video side alone.
    """
    from experiments.runs.registry import is_registered, model_folder
    from pretrain.convert.exporting import ExportConfig, run_export
    from pretrain.convert.layouts import layout_named
    from pretrain.storage import place

    config = ExportConfig(layout=layout_named(layout), weights=weights, written_as=dtype)
    source = model_folder(model, Path("out")) if is_registered(model) else place(model)
    result = run_export(config, source, place(to))
    if as_json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['tensors']} tensors in {', '.join(result['sha256'])} of {to}")
    if left := result["left_out"]:
        print(f"{len(left)} tensors of the audio side are not part of this layout")


def export_diffusers(
    model: ModelToUse = Path("out/pretrain/stage3/model"),
    codec: CodecOfModel = None,
    to: Path = Path("out/diffusers"),
    recipe: str = "mini",
    weights: Literal["ema", "model"] = "ema",
    dtype: Annotated[
        Literal["same", "fp32", "bf16"], tyro.conf.arg(help="how tensors are stored; same = as they are")
    ] = "same",
    shard_gib: Annotated[float, tyro.conf.arg(help="size of a file of weights at most")] = 4.0,
    settings: SetOptions = (),
    as_json: JsonFlag = False,
) -> None:
    """Write a model and its codec as a folder that diffusers loads:

      pipe = DiffusionPipeline.from_pretrained("out/diffusers", trust_remote_code=True)
      clip = pipe("A man says: <S>hello<E>.", references=["voice.wav"], seed=0)

    The code is this package's, which has to be installed where the folder is used. Clips are those of `nava
    generate` (docs/generating.md). What a call does not say is the recipe's `generate` section, with --set.
    A codec of published weights refers to them; they are not copied, and the command says where they lie.
    """
    from experiments.runs.registry import model_and_codec
    from pretrain.convert.diffusers_folder import PipelineExport, export_pipeline

    if not 0 < shard_gib < float("inf"):
        raise ValueError(f"--shard-gib: expected a size above 0, got {shard_gib:g}")
    config = PipelineExport(weights=weights, dtype=dtype, max_bytes=max(1, int(shard_gib * 2**30)))
    model, codec = model_and_codec(model, codec, Path("out"), Path("out/codec"))
    result = export_pipeline(config, model, codec, recipe_for(recipe, settings).generate, to)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    sizes = ", ".join(f"{name} ({size / 2**20:,.1f} MiB)" for name, size in result["files"].items())
    print(f"{result['tensors']} tensors of {result['checkpoint_id']} in {sizes}; the pipeline is in {to}")
    for path in result["codec_weights"]:
        print(f"note: the codec refers to weights in {path}, which were not copied")


def _tracked_import(planned: Planned, path: str, to: str, dcp: bool, out: Path) -> dict[str, Any]:
    from experiments.runs.lineage import CHECKPOINT_TAG, SHA256
    from experiments.runs.model_names import model_tags
    from experiments.runs.run import single_run
    from pretrain.convert.dcp import write_dcp
    from pretrain.convert.importing import run_import
    from pretrain.storage import place

    digests = planned.reader.sha256()
    settings = {**vars(planned.config), "source": path, "layout": planned.layout, **planned.account.counts()}
    inputs = {str(file): f"{SHA256}{digests[file.name]}" for file in planned.reader.files}
    with single_run("import", settings, {"nava.output": to}, Layout(out=out), Path(), inputs) as tracker:
        facts = run_import(planned, place(to), digests)
        tracker.set_tags({CHECKPOINT_TAG: facts["checkpoint_id"]})
        if "://" not in to:
            tracker.log_model(Path(to), planned.config.flavor, model_tags(Path(to)))
        written = {"to": to, "checkpoint_id": facts["checkpoint_id"], "sha256": digests}
        return written | ({"dcp": str(write_dcp(place(to)))} if dcp else {})


def _show(result: dict[str, Any], keys: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 250)
    if keys:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("key", "shape", "state", "from"):
            table.add_column(name, overflow="fold")
        for row in keys:
            theirs = row["from"]
            source = (
                theirs[0] + (f" and {len(theirs) - 1} more" if len(theirs) > 1 else "")
                if theirs
                else row["how"]
            )
            table.add_row(Text(row["key"]), "x".join(map(str, row["shape"])), row["state"], Text(source))
        console.print(table)
    for name, value in result.items():
        text = f"{value:,}" if isinstance(value, int) else value
        if isinstance(value, dict):
            text = ", ".join(f"{name} {digest}" for name, digest in value.items())
        console.print(f"{name}: {text}", markup=False, highlight=False)
