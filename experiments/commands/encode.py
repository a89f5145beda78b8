"""`nava encode`: a recipe's corpus in this process, or any manifests by many ranks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import RecipeName, SetOptions, recipe_for
from experiments.layout import Layout
from pretrain.launch.alone import Rank, one_process, started_as_rank

if TYPE_CHECKING:
    from pretrain.data.encoding.config import EncodeConfig
    from pretrain.data.encoding.encode_ranks import EncodeJob, SetJob

Lists = Annotated[
    str,
    tyro.conf.arg(
        name="list", metavar="FILE.list", help="encode the sets of a mixing file, its .weight beside it"
    ),
]
Manifests = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="JSONL", help="encode these (files or URLs), as sets of their names"),
]
EncodingCodec = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FOLDER", help="codec folder, or models:/NAME@ALIAS; default OUT/codec"),
]
SetsPlace = Annotated[
    str,
    tyro.conf.arg(
        metavar="PLACE",
        help="folder or URL that gets a folder per set; default OUT/latents, or OUT/encoded where the "
        "pipeline makes that",
    ),
]
OneRank = Annotated[
    str,
    tyro.conf.arg(
        metavar="R/N",
        help="this process is rank R, from 0, of N that are started one by one; known under torchrun, and "
        "where RANK and WORLD_SIZE are those of srun or mpirun",
    ),
]
VerifyFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="check the encoded shards first; encode damaged ones again, and those of local files that "
        "changed since (size or time of change)"
    ),
]
RestartFlag = Annotated[
    bool, tyro.conf.arg(help="encode these sets from the start; what is there goes to the trash")
]


def encode(
    recipe: RecipeName = "mini",
    /,
    settings: SetOptions = (),
    out: Path = Path("out"),
    mix: Lists = "",
    manifest: Manifests = (),
    codec: EncodingCodec = None,
    to: SetsPlace = "",
    nproc: Annotated[int, tyro.conf.arg(help="ranks; 0 = one per GPU, or two")] = 0,
    rank: OneRank = "",
    restart: RestartFlag = False,
    verify: VerifyFlag = False,
) -> None:
    """Encode every set of a recipe's corpus into OUT/latents; or, with --list or --manifest, any sets by many
    ranks.

    A set is encoded in units (recipe field encode.rows_per_shard), which are distributed over the ranks. The
    same command resumes killed work with the missing units, on any number of ranks; a finished set is kept.
    On several nodes start it once per rank with --rank (`srun bash -c 'nava encode ... --rank
    $SLURM_PROCID/$SLURM_NTASKS'`), or by `torchrun -m experiments.cli encode ...`; ranks coordinate through
    PLACE alone. RANK and WORLD_SIZE that are only left over in the shell are ignored. `nava pretrain --set
    pretrain.latents=PLACE` trains on the sets.
    """
    loaded = recipe_for(recipe, settings)
    if not (mix or manifest):
        if codec or to or nproc or rank or restart or verify:
            raise ValueError(
                "--codec, --to, --nproc, --rank, --restart and --verify belong to --list or --manifest; give "
                "one of these"
            )
        from experiments.job import StageJob
        from experiments.stages import run_stage

        run_stage("encode", StageJob(recipe=loaded, layout=Layout(out=out)))
        return
    one = _rank_of(rank, nproc)
    from experiments.runs.registry import model_folder
    from pretrain.data.encoding.encode_ranks import EncodeJob

    layout, start_s = Layout(out=out), time.monotonic()
    job = EncodeJob(
        config=loaded.encode,
        sets=_sets(mix, manifest, loaded.encode),
        codec=str(model_folder(codec, out, shared=one is not None) if codec else layout.codec),
        to=_destination(to, layout),
        verify=verify,
    )
    if one:
        if merged := _as_a_rank(job, one, restart):
            made = dataclasses.replace(job, sets=merged)
            _record(recipe, made, _inputs(made), layout, time.monotonic() - start_s)
        return
    with one_process("encode"):
        inputs = _inputs(job)
        _launch(job, out / "encoding", nproc, restart)
        _record(recipe, job, inputs, layout, time.monotonic() - start_s)


def _rank_of(text: str, nproc: int) -> Rank | None:
    """The rank that this process is: given, or by its launcher. Raises ValueError for another form, and where
    it was also told to start ranks."""
    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    given, by_launcher = _parsed(text) if text else None, started_as_rank()
    if (one := given or by_launcher) and nproc:
        who = f"--rank {text}" if given else "its launcher"
        raise ValueError(
            f"--nproc {nproc} starts ranks here, but this process is rank {one.rank} of {one.ranks} by "
            f"{who}; leave one of them out"
        )
    return one


def _parsed(text: str) -> Rank:
    rank, slash, ranks = text.partition("/")
    if not (slash and rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise ValueError(f"--rank {text}: expected R/N, such as 0/4 for the first of four ranks")
    return Rank(int(rank), int(ranks))


def _destination(to: str, layout: Layout) -> str:
    """Place of the sets: PLACE, else OUT/latents, or OUT/encoded where a stage of the pipeline makes that.

    Raises ValueError for a PLACE in such an output: DVC empties it before the stage runs.
    """
    from experiments.runs.provenance import maker_of
    from pretrain.storage import is_remote, place

    if not to:
        return str(layout.encoded if maker_of(layout.latents, Path()) else layout.latents)
    if not is_remote(place(to)) and (stage := maker_of(Path(to), Path())):
        raise ValueError(
            f"--to {to}: made by the pipeline's stage {stage}, whose next run would delete other sets in it; "
            f"give another place, such as {layout.encoded}"
        )
    return to


def _sets(mix: str, manifests: tuple[str, ...], config: EncodeConfig) -> tuple[SetJob, ...]:
    """The sets by name. Raises ValueError where two would be written to one folder."""
    from pretrain.data.encoding.encode_ranks import SetJob
    from pretrain.data.mixing import read_mix
    from pretrain.storage import place

    sets = [
        SetJob(name=place(one).stem, manifest=one, video=place(one).stem not in config.audio_only_sets)
        for one in manifests
    ]
    for entry in read_mix(mix) if mix else ():
        silent = entry.modal in ("text_to_video", "text_to_image")
        sets.append(
            SetJob(
                name=entry.name,
                manifest=str(entry.path),
                video=entry.modal != "text_to_audio",
                audio=not silent,
            )
        )
    names = [one.name for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"set {twice[0]!r} is given twice; rename one of its manifests")
    return tuple(sets)


def _launch(job: EncodeJob, folder: Path, nproc: int, restart: bool) -> None:
    from pretrain.data.encoding.encode_launch import encode_places
    from pretrain.storage import place

    ranks = nproc or _ranks()
    for name, content in encode_places(job, folder, ranks, restart).items():
        fields = ", ".join(f"{count} for {field}" for field, count in content["rejected_fields"].items())
        print(
            f"{place(job.to) / name}: {content['samples']} samples in {len(content['shards'])} shards, "
            f"{content['num_rejected']} rows rejected"
            + (f" ({fields}); the first: {content['rejected'][0]}" if fields else "")
        )


def _inputs(job: EncodeJob) -> dict[str, str]:
    """Path -> digest of the manifests and the codec."""
    from experiments.runs.inputs import digests_of_inputs

    places = [*(one.manifest for one in job.sets), job.codec]
    return digests_of_inputs(*map(Path, places)) | {one: "remote" for one in places if "://" in one}


def _record(recipe: str, job: EncodeJob, inputs: Mapping[str, str], layout: Layout, seconds: float) -> None:
    """The manifests and indexes of the sets stand for their shards, whose checksums they hold."""
    from experiments.recipes.load import as_plain
    from experiments.runs.run import record_run

    places = [Path(job.to) / one.name / name for one in job.sets for name in ("manifest.json", "index.arrow")]
    tags, config = {"nava.recipe": recipe, "nava.output": job.to}, as_plain(job.config)
    record_run("encode", config, tags, layout, Path(), inputs, places, seconds)


def _as_a_rank(job: EncodeJob, one: Rank, restart: bool) -> tuple[SetJob, ...]:
    """Encode this rank's part; returns the sets of which it was the last and so merged all parts."""
    from pretrain.data.encoding.encode_launch import progress_of
    from pretrain.data.encoding.encode_ranks import encode_rank
    from pretrain.data.encoding.parts import MANIFEST
    from pretrain.storage import is_file, place

    if restart and one.ranks > 1:
        raise ValueError(
            "--restart: one of several ranks cannot tell whether the others have begun; remove the sets' "
            "folders instead"
        )
    local = one.local if one.local >= 0 else one.rank % _ranks()
    if one.rank:
        merged = encode_rank(job, one.rank, one.ranks, local_rank=local)
    else:
        with progress_of(job) as progress:
            merged = encode_rank(job, one.rank, one.ranks, progress.show, local)
    for name in (each.name for each in job.sets):
        if not is_file(place(job.to) / name / MANIFEST):
            print(f"{place(job.to) / name}: rank {one.rank} of {one.ranks} is done, others have parts to do")
    return tuple(each for each in job.sets if each.name in merged)


def _ranks() -> int:
    import torch

    return torch.cuda.device_count() or 2
