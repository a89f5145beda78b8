"""`nava curate`: the recipe's corpus, or any prepared or encoded set."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.options import JsonFlag, RecipeName, SetOptions, recipe_for
from experiments.layout import Layout

if TYPE_CHECKING:
    from experiments.recipes.base import Recipe
    from pretrain.data.curation.looks import MakeEmbedder

COMMAND = "curate"

ClipSet = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="SET",
        help="a folder of `nava prepare`, a manifest.jsonl, or an encoded set; default OUT/corpus, which "
        "`nava corpus RECIPE` renders",
    ),
]
ChosenPlace = Annotated[
    Path | None,
    tyro.conf.arg(
        help="folder of the chosen clips of --clips: curated.jsonl and report.json, or an encoded set"
    ),
]
LabelsFile = Annotated[
    Path | None,
    tyro.conf.arg(metavar="JSONL", help="manifest that an encoded set is of: its quality labels count"),
]
NumProcesses = Annotated[int, tyro.conf.arg(help="processes; 0 = one for each processor; changes no choice")]


def curate(
    recipe: RecipeName = "mini",
    /,
    clips: ClipSet = None,
    to: ChosenPlace = None,
    labels: LabelsFile = None,
    nproc: NumProcesses = 0,
    settings: SetOptions = (),
    out: Path = Path("out"),
    as_json: JsonFlag = False,
) -> None:
    """Choose curate.budget clips that together stand for all, good ones first (submodlib), from the recipe's
    corpus into OUT/curated; or from any set into --to.

    Manifests give curated.jsonl, to be encoded or trained on, encoded sets an encoded set. Above
    curate.dense_clips clips the choice is made in parts, whose memory is bounded; report.json says what it is
    worth at least. Features of such sets are kept in .TO.work beside --to, so that a killed run, and another
    budget, read no clip again. --set curate.embedding=package.module:Class places clips by a model.
    """
    loaded = recipe_for(recipe, settings)
    if nproc < 0:
        raise ValueError(f"--nproc {nproc}: expected at least 0")
    if clips is None:
        if to or labels or loaded.curate.embedding:
            raise ValueError("--to, --labels and curate.embedding belong to --clips SET; name the set")
        _of_corpus(loaded, Layout(out=out))
        return
    if to is None:
        raise ValueError(f"--clips {clips}: give --to FOLDER for what is chosen of it")
    _of_set(loaded, clips, to, labels, nproc, Layout(out=out), as_json)


def _of_corpus(recipe: Recipe, layout: Layout) -> None:
    """The stage of the pipeline. Raises ValueError for a corpus of another recipe, FileNotFoundError for
    none."""
    from experiments.job import StageJob
    from experiments.runs.run import read_record
    from experiments.stages import run_stage
    from pretrain.data.curate import PAIRED

    other = f"run `nava corpus {recipe.name}` first, or name your set by --clips SET --to FOLDER"
    if not (layout.corpus / PAIRED).is_file():
        raise FileNotFoundError(f"{layout.corpus / PAIRED}: no corpus to curate; {other}")
    record = read_record(layout, "corpus")
    if record and record.recipe != recipe.name:
        raise ValueError(
            f"{layout.corpus}: is the corpus of recipe {record.recipe}, not of {recipe.name}; {other}"
        )
    run_stage("curate", StageJob(recipe=recipe, layout=layout))


def _of_set(
    recipe: Recipe, clips: Path, to: Path, labels: Path | None, nproc: int, layout: Layout, as_json: bool
) -> None:
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run
    from pretrain.data.encoding.parts import INDEX
    from pretrain.launch.alone import one_process

    begun_s = time.monotonic()
    with one_process("curate"):
        if (clips / INDEX).is_file():
            report = _of_encoded(recipe, clips, to, labels, nproc)
            read = [clips / INDEX]
        else:
            manifest = _manifest(clips)
            if labels:
                raise ValueError(f"--labels {labels}: for encoded sets; {manifest} has labels of its own")
            report = _of_manifest(recipe, manifest, to, nproc)
            read = [manifest]
    tags, seconds = {"nava.recipe": recipe.name, "nava.output": str(to)}, time.monotonic() - begun_s
    config = as_plain(recipe.curate)
    inputs = digests_of_inputs(*read, *([labels] if labels else []))
    record_run("curate", config, tags, layout, Path(), inputs, [to], seconds, whole=True)
    _tell(report, to, as_json)


def _manifest(clips: Path) -> Path:
    """The manifest of a set. Raises FileNotFoundError, ValueError where there is none."""
    if clips.is_file():
        return clips
    if not clips.is_dir():
        raise FileNotFoundError(f"{clips}: no such file or folder; give a prepared or encoded set")
    for name in ("manifest.jsonl", "paired.jsonl"):
        if (clips / name).is_file():
            return clips / name
    raise ValueError(
        f"{clips}: neither manifest.jsonl (of `nava prepare`), paired.jsonl (of `nava corpus`) nor an "
        "encoded set in it; videos are prepared by `nava prepare` first"
    )


def _of_manifest(recipe: Recipe, manifest: Path, to: Path, nproc: int) -> Mapping[str, Any]:
    import pretrain.data.curate
    from pretrain.owned import check_owned, owned_folder

    target, model = check_owned(to, COMMAND), _model(recipe)
    work = target.with_name(f".{target.name}.work")
    with owned_folder(to, COMMAND) as fresh:
        return pretrain.data.curate.curate(
            recipe.curate, manifest.parent, fresh, manifest.name, work, model, nproc
        )


def _of_encoded(recipe: Recipe, clips: Path, to: Path, labels: Path | None, nproc: int) -> Mapping[str, Any]:
    from pretrain.data.curate import choose_rows, work_folder
    from pretrain.data.curation.encoded import look_at_store, write_chosen
    from pretrain.data.manifest import check_rejected
    from pretrain.owned import check_owned

    if recipe.curate.embedding:
        raise ValueError("curate.embedding: places clips; an encoded set is curated by its latents")
    target = check_owned(to, "encode")
    work = target.with_name(f".{target.name}.work")
    with work_folder(work):
        looked = look_at_store(clips, labels, work, nproc or os.cpu_count() or 1)
        count = len(looked.rows) + len(looked.rejected)
        check_rejected(clips, looked.rejected, count, recipe.curate.max_bad_fraction)
        report, chosen = choose_rows(recipe.curate, looked, work, nproc)
        report["rejected"] = [error.at(clips) for error in looked.rejected]
        write_chosen(clips, looked, chosen, to, report)
    return report


def _model(recipe: Recipe) -> tuple[str, MakeEmbedder] | None:
    """What places clips, by the recipe; made in each process."""
    from functools import partial

    from rewards.plugins import KINDS, load

    config = recipe.curate
    if not config.embedding:
        if config.embedding_options:
            raise ValueError("curate.embedding_options: belong to curate.embedding, which is not given")
        return None
    made = load(config.embedding, KINDS["embedding"], f"curate.embedding: {config.embedding!r}")
    options = dict(config.embedding_options)
    make = partial(made, **options)
    if not hasattr(make(), "embed"):  # wrong options and missing weights are told before any clip is read
        raise ValueError(f"curate.embedding: {config.embedding!r} makes nothing with embed(media)")
    return json.dumps([config.embedding, options], sort_keys=True, default=str), make


def _tell(report: Mapping[str, Any], to: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=1))
        return
    ours, random = report["curated"], report["random"]
    print(
        f"{to}: {report['chosen']} of {report['rows']} clips; value {ours['facility_location']:.1f}, of all "
        f"{report['facility_location_of_all']:.1f}, of random choices {random['facility_location']:.1f}"
    )
    print(f"mean quality {ours['quality']:.3f}, of random choices {random['quality']:.3f}")
    if "parts" in report:
        how = report["parts"]
        print(
            f"in {how['groups']} x {how['parts']} parts, {how['candidates']} candidates; at least "
            f"{report['at_least_of_best']:.0%} of the best choice's value (on {report['evaluated_on']} clips)"
        )
    if report["rejected"]:
        print(f"{len(report['rejected'])} clips cannot be read; the first: {report['rejected'][0]}")
