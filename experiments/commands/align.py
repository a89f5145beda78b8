"""`nava align`: refine the pretrained model by rewards on its own clips, or by votes on them."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.options import (
    AnywayFlag,
    AsideFlag,
    InsecureRay,
    RecipeName,
    ResumeFlag,
    SetOptions,
    recipe_for,
)
from experiments.layout import Layout

if TYPE_CHECKING:
    from experiments.alignment.inputs import AlignInputs
    from experiments.continuing import Wish
    from experiments.job import StageJob
    from finetune.align_run import AlignRun
    from pretrain.launch.launch import StageResult

ModelToAlign = Annotated[
    str,
    tyro.conf.arg(
        metavar="FOLDER",
        help="model to align: a model folder, one of `nava import`, or models:/NAME@ALIAS or /VERSION of "
        "MLflow; default OUT/pretrain/stage3/model",
    ),
]
AdapterFolder = Annotated[
    Path | None,
    tyro.conf.arg(
        help="adapter folder of an earlier alignment of that very model to start from, with its LoRA rank, "
        "alpha and layers (align.lora.base stays yours); the reference stays the model without it, and what "
        "is written is relative to that model"
    ),
]
CodecFolder = Annotated[
    Path | None,
    tyro.conf.arg(help="codec folder, or models:/...; default OUT/codec, or that of a registered model"),
]
PromptsFile = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="JSONL", help="training prompts; default the pipeline's, as align.curated_prompts says"
    ),
]
HeldOutFile = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="JSONL", help="held-out prompts; default align.stop.prompts of the training prompts"
    ),
]
RubricPath = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="YAML", help="rubric of `nava score`, in place of align.rubric; weight 0 = watched only"
    ),
]
PairsFile = Annotated[
    Path | None,
    tyro.conf.arg(help="pairs.jsonl of `nava gsb export`, for gsb_dpo; default OUT/votes/pairs.jsonl"),
]
RolloutFolder = Annotated[
    Path | None,
    tyro.conf.arg(help="rollout store of the clips in those pairs; default OUT/rollouts"),
]
Destination = Annotated[Path | None, tyro.conf.arg(help="folder of the alignment; default OUT/align")]
RayCluster = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(
        metavar="[ADDRESS]",
        help="run on Ray: embedded, or the cluster at HOST:PORT, whose nodes must see all paths",
    ),
]

ReportFlag = Annotated[
    bool, tyro.conf.arg(help="end with the closing page, where the inputs are not the pipeline's")
]


def align(
    recipe: RecipeName = "mini",
    /,
    model: ModelToAlign = "",
    adapter: AdapterFolder = None,
    codec: CodecFolder = None,
    prompts: PromptsFile = None,
    held_out: HeldOutFile = None,
    rubric: RubricPath = None,
    pairs: PairsFile = None,
    clips: RolloutFolder = None,
    to: Destination = None,
    nproc: int = 0,
    port: int = 0,
    settings: SetOptions = (),
    out: Path = Path("out"),
    ray: RayCluster = None,
    insecure_ray: InsecureRay = False,
    resume: ResumeFlag = True,
    resume_anyway: AnywayFlag = False,
    move_aside: AsideFlag = False,
    report: ReportFlag = True,
) -> None:
    """Align a model by the algorithms of align.sequence, by default the pipeline's into OUT/align.

    Writes adapter/ (a PEFT adapter), model/ (merged, for `nava generate --model`), metrics.jsonl, state.json,
    samples/round-N and, with inputs of your own, TO-report/report.html: held-out prompts before and after.
    --nproc 0 is one rank per GPU, or two without. An interrupted run goes on from its last round, also with
      other checkpointing and memory settings; a finished one in another that starts from its adapter.

    Any model, codec, prompts and rubric, all checked before the model is loaded:
      nava align mini --model my/model --codec my/codec --prompts my.jsonl --rubric rubric.yaml --to my/align
      nava align nava_6b --model models:/nava-6b@best --prompts train.jsonl --held-out test.jsonl
      nava align mini --set align.sequence=[gsb_dpo] --pairs pairs.jsonl --clips rollouts --to my/align
    --ray runs rollouts and rewards in workers (section `ray`). With staleness 0 the result is that of local
      ranks; a lost worker or rank is replaced. rounds.jsonl lists the samples of each round.
    """
    from experiments.alignment.inputs import AlignInputs, AlignLayout
    from experiments.continuing import Wish
    from experiments.job import StageJob

    _check_options(nproc, port, address := address_of(ray))
    loaded = with_rubric_file(recipe_for(recipe, settings), rubric)
    inputs = AlignInputs(
        **_model_and_codec(model, codec, out, bool(address)),
        adapter=adapter,
        prompts=prompts,
        held_out=held_out,
        rubric=rubric,
        pairs=pairs,
        clips=clips,
    )
    layout = AlignLayout(out=out, to=to or out / "align") if inputs.own or to else Layout(out=out)
    job = StageJob(recipe=loaded, layout=layout, nproc=nproc, port=port, anyway=resume_anyway)
    _check_before(job, inputs, address, recipe)
    with ExitStack() as opened:
        wish = Wish(resume, resume_anyway, move_aside, "--to")
        _align(job, inputs, address, wish, opened, insecure_ray)
        _close(job, report)


def _check_options(nproc: int, port: int, address: str) -> None:
    """Raises ValueError naming the option that is wrong."""
    from pretrain.launch.torchrun import check_port

    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    if port:
        check_port(port)
    if address and port:
        raise ValueError("--port is torchrun's; Ray's ranks find a port themselves: leave it out")


def _check_before(job: StageJob, inputs: AlignInputs, address: str, recipe: str) -> None:
    """Check everything before anything is replaced, and print notices. Raises in one line."""
    from experiments.alignment.checks import check_before
    from experiments.alignment.inputs import align_run, check_lora

    if inputs.adapter:
        check_lora(job.recipe.align.lora, recipe_for(recipe, ()).align.lora, inputs.adapter)
    notices = check_before(align_run(job, None, inputs), job.ranks)
    if address:
        job.recipe.ray.rewards_of(list(job.recipe.align.rubric.routes()))
    for notice in notices:
        print(notice)


def _align(
    job: StageJob, inputs: AlignInputs, address: str, wish: Wish, opened: ExitStack, insecure: bool
) -> None:
    """Align as a tracked run, unless it is finished, below one of the whole command."""
    from experiments.alignment.inputs import AlignLayout, align_run, digests
    from experiments.continuing import decide
    from experiments.pipeline.align import align_tracked, alignment_of
    from experiments.runs.invocation import invocation
    from experiments.runs.run import marker_of, tracked
    from experiments.runs.system import system_metrics
    from experiments.stages import add_to_invocation, config_of, params_shown
    from finetune.launch import alone

    layout, config = job.layout, config_of("align", job.recipe)
    staleness = job.recipe.ray.staleness if address else 0
    config |= {"staleness": staleness} if staleness else {}
    given = digests(align_run(job, None, inputs), inputs) if isinstance(layout, AlignLayout) else None
    opened.enter_context(alone(layout.align))  # before anything there is replaced
    decision = decide(dataclasses.replace(alignment_of(job, inputs), staleness=staleness), job, wish)
    if not decision.train:
        return
    if given is not None:  # what the stage left unfinished in the same folder is replaced
        marker_of("align", Layout(out=layout.out)).unlink(missing_ok=True)
    shown = params_shown("align", config)
    opened.enter_context(invocation(_what(job), layout, job.root, shown))
    with tracked(
        "align",
        job.recipe.name,
        config,
        layout,
        job.root,
        resume=True,
        given=given,
        go_on=decision.go_on,
        notes=decision.notes,
        params=shown,
    ) as tracker:
        if address:
            tracker.set_tags({"nava.ray": address, "nava.staleness": str(staleness)})
        with system_metrics(tracker, job.recipe.tracking.system_metrics_s):
            align_tracked(job, tracker, inputs, lambda run: _train(run, job, address, insecure))
        add_to_invocation("align", job, tracker)


def _what(job: StageJob) -> str:
    """What an alignment does, for the name of its run."""
    names = dict.fromkeys(entry.rpartition(":")[2] for entry in job.recipe.align.sequence)
    return f"align {job.recipe.name} {'+'.join(names)}"


def _close(job: StageJob, report: bool) -> None:
    """The closing page of a finished alignment with inputs of its own. Raises ValueError or OSError that says
    what is kept."""
    from experiments.alignment.inputs import AlignLayout
    from experiments.report.closing import closing_report
    from experiments.report.closing_run import closing_files, closing_inputs, closing_results, read_run
    from experiments.runs.invocation import current, publish

    if not report or not isinstance(job.layout, AlignLayout):
        return
    folder = job.layout.align
    run = read_run(folder)
    if run.held_out is None and not run.config.stop.prompts:
        print(f"no prompts were held out, so there is no page: `nava align report {folder} --prompts FILE`")
        return
    try:
        page = closing_report(closing_inputs(run, folder))
    except (ValueError, OSError) as error:
        message = f"{error} (the alignment is finished: `nava align report {folder}` makes the page)"
        raise ValueError(message) from error
    print(f"before and after: {page}")
    if (above := current(job.layout, job.root)) is not None:
        publish(above, closing_results(page.parent))
        for path, below in closing_files(page.parent).items():
            above.log_artifact(str(path), below)


def with_rubric_file(recipe: Any, path: Path | None) -> Any:
    """The recipe with the rubric of a file, if one is given. Raises ValueError in one line naming its key."""
    if path is None:
        return recipe
    from experiments.alignment.rubric import with_rubric
    from experiments.scoring.config import read_rubric

    return dataclasses.replace(recipe, align=with_rubric(recipe.align, read_rubric(path)))


def _model_and_codec(model: str, codec: Path | None, out: Path, shared: bool) -> dict[str, Path | None]:
    """Folders of the model and codec that are not the pipeline's, fetched where the registry names them."""
    from experiments.runs.registry import model_and_codec, model_folder

    if not model:
        return {"model": None, "codec": model_folder(codec, out, shared=shared) if codec else None}
    default = Layout(out=out).codec
    found, its_codec = model_and_codec(model, codec, out, default, shared=shared)
    return {"model": found, "codec": None if its_codec == default and codec is None else its_codec}


def _train(run: AlignRun, job: StageJob, address: str, insecure: bool = False) -> StageResult:
    """By ranks of torchrun, or on the Ray at `address`."""
    if not address:
        from finetune.launch import align_model

        return align_model(run, job.ranks, job.port)
    from experiments.scoring.latents import options_for
    from orchestration.align import align_on_ray

    return align_on_ray(run, job.ranks, job.recipe.ray, options_for, address, insecure)


def address_of(ray: tuple[str, ...] | None) -> str:
    """The Ray address of --ray, "" without. Raises ValueError where it is no address."""
    if ray is None:
        return ""
    if len(ray) > 1:
        raise ValueError(f"--ray: expected one address or none, got {' '.join(ray)}")
    address = ray[0] if ray else "local"
    if address != "local" and ":" not in address:
        raise ValueError(
            f"--ray: expected HOST:PORT, or nothing for an embedded Ray, got {address!r}; the recipe goes "
            "before the options"
        )
    return address
