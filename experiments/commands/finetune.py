"""`nava finetune`: supervised fine-tuning of a model on given clips."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import (
    AnywayFlag,
    AsideFlag,
    MaxRestarts,
    NodeRank,
    NumNodes,
    ProfileRanks,
    ProfileSteps,
    RecipeName,
    Rendezvous,
    ResumeFlag,
    SetOptions,
    profiled,
    recipe_for,
)

if TYPE_CHECKING:
    from experiments.continuing import Wish
    from experiments.job import StageJob
    from experiments.pipeline.finetune import FinetuneInputs
    from finetune.sft.config import FinetuneConfig
    from pretrain.launch.nodes import Nodes

ClipsSet = Annotated[
    str,
    tyro.conf.arg(
        metavar="SET",
        help="clips to train on: a manifest (JSONL), an encoded set, a folder of clip.mp4 with clip.txt, or "
        "a table (CSV)",
    ),
]
ModelToTune = Annotated[
    str,
    tyro.conf.arg(
        metavar="FOLDER",
        help="model to start from: a folder, or models:/NAME@ALIAS or /VERSION of MLflow; default that of "
        "the recipe's last pretraining stage in OUT",
    ),
]
CodecToTune = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FOLDER", help="codec, given likewise; default OUT/codec, or that of a registered model"
    ),
]
TuneDestination = Annotated[
    Path | None, tyro.conf.arg(metavar="OUT", help="folder of the result; default OUT/finetune")
]


def finetune(
    recipe: RecipeName = "mini",
    /,
    clips: ClipsSet = "",
    model: ModelToTune = "",
    codec: CodecToTune = None,
    lora: Annotated[bool, tyro.conf.arg(help="train a LoRA adapter: the default", name="lora")] = False,
    full: Annotated[bool, tyro.conf.arg(help="train all weights", name="full")] = False,
    to: TuneDestination = None,
    nproc: Annotated[int, tyro.conf.arg(help="ranks; 0 = one per GPU, or two")] = 0,
    port: Annotated[int, tyro.conf.arg(help="of torchrun; 0 = any free one")] = 0,
    nnodes: NumNodes = 1,
    rdzv: Rendezvous = "",
    node_rank: NodeRank = -1,
    max_restarts: MaxRestarts = 0,
    profile: ProfileSteps = "",
    profile_ranks: ProfileRanks = "0",
    settings: SetOptions = (),
    out: Path = Path("out"),
    resume: ResumeFlag = True,
    resume_anyway: AnywayFlag = False,
    move_aside: AsideFlag = False,
) -> None:
    """Fine-tune a model on clips of your own, by LoRA or all weights.

    Writes adapter/ (PEFT; for `nava generate --adapter`, `nava align --adapter` and PEFT itself), model/
    (merged), samples/step-N (the same prompts every finetune.clips_every steps) and metrics.jsonl.
    Clips that are not encoded yet are encoded into TO-sets first, and kept. Sound that is missing, muted or
    too short in more than finetune.sound.max_bad of the clips whose text has speech is refused.
    finetune.base_share of the steps (0.5) are on the model's own data, to keep its answers there.
    An interrupted run goes on from its last checkpoint. Several machines run the same command with --nnodes
    and --rdzv, and see the same --to and --out; the first one checks and encodes.

      nava finetune mini --clips my_clips --to my/voice
      nava finetune mini --clips rows.jsonl --set finetune.base_share=0 --set finetune.lora.rank=16
      nava finetune mini --clips rows.jsonl --model models:/nava-mini@aligned --full --set finetune.lr=1e-4
      nava generate prompts.jsonl --adapter my/voice/adapter
    """
    from experiments.continuing import Wish
    from experiments.job import StageJob
    from experiments.pipeline.finetune import FinetuneLayout
    from finetune.sft.launch import alone
    from pretrain.launch.nodes import Nodes, find_node_rank

    _check(clips, lora and full, nproc, port)
    number = find_node_rank(nnodes, node_rank)
    nodes = Nodes(count=nnodes, rank=number, rendezvous=rdzv, max_restarts=max_restarts)
    loaded = recipe_for(recipe, settings)
    tuned = _of_weights(profiled(loaded.finetune, profile, profile_ranks), lora, full)
    loaded = dataclasses.replace(loaded, finetune=tuned)
    layout = FinetuneLayout(out=out, to=to or out / "finetune")
    job = StageJob(recipe=loaded, layout=layout, nproc=nproc, port=port, nodes=nodes, anyway=resume_anyway)
    wish = _wish(Wish(resume, resume_anyway, move_aside, "--to"), nodes)
    layout.to.parent.mkdir(parents=True, exist_ok=True)
    if not nodes.leads:
        return _join(job, layout.to)
    inputs = _inputs(clips, model, codec, job)
    with alone(layout.to), ExitStack() as opened:
        _finetune(job, inputs, wish, opened)


def _of_weights(config: FinetuneConfig, lora: bool, full: bool) -> FinetuneConfig:
    """As the recipe says where neither is given."""
    return dataclasses.replace(config, full=full) if lora or full else config


def _check(clips: str, both: bool, nproc: int, port: int) -> None:
    from pretrain.launch.torchrun import check_port

    if not clips:
        raise ValueError(
            "--clips: give the clips to train on, such as --clips my_clips or --clips rows.jsonl"
        )
    if both:
        raise ValueError("--lora and --full exclude each other; give one")
    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    if port:
        check_port(port)


def _wish(wish: Wish, nodes: Nodes) -> Wish:
    if nodes.count > 1 and wish.replaces:
        raise ValueError("--no-resume, --move-aside: the other nodes cannot know of it; move --to away first")
    return wish


def _join(job: StageJob, to: Path) -> None:
    """Run this node's ranks of what the first node fine-tunes."""
    from finetune.sft.launch import join_finetuning

    steps = job.recipe.finetune.steps
    result = join_finetuning(to, job.ranks, job.nodes, steps)
    print(f"finetune: {result.status} at step {result.step}")


def _inputs(clips: str, model: str, codec: Path | None, job: StageJob) -> FinetuneInputs:
    """Raises FileNotFoundError or ValueError where the model or codec is not there."""
    from experiments.pipeline.finetune import FinetuneInputs
    from experiments.runs.registry import model_and_codec
    from pretrain.storage import place

    layout = job.layout
    default = layout.model(list(job.recipe.pretrain.stages)[-1])
    found, its_codec = model_and_codec(
        model or default, codec, layout.out, layout.codec, shared=job.nodes.count > 1
    )
    for folder, hint in ((found, "train one or give --model"), (its_codec, "fit one or give --codec")):
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no config.json here; {hint}")
    return FinetuneInputs(clips=place(clips), model=found, codec=its_codec, own_model=bool(model))


def _finetune(job: StageJob, inputs: FinetuneInputs, wish: Wish, opened: ExitStack) -> None:
    """Fine-tune as a tracked run, unless it is finished, below one of the whole command."""
    from experiments.continuing import decide
    from experiments.pipeline.finetune import digests, finetune_tracked, finetuning_of
    from experiments.recipes.load import as_plain
    from experiments.runs.invocation import add_curves, current, invocation
    from experiments.runs.run import marker_of, tracked
    from experiments.runs.system import system_metrics

    layout, config = job.layout, as_plain(job.recipe.finetune)
    run = finetuning_of(job, inputs)
    decision = decide(run, job, wish)
    if not decision.train:
        return
    opened.enter_context(invocation(f"finetune {job.recipe.name}", layout, job.root, config))
    marker_of("finetune", layout).parent.mkdir(parents=True, exist_ok=True)
    with tracked(
        "finetune",
        job.recipe.name,
        config,
        layout,
        job.root,
        resume=True,
        given=digests(run, inputs),
        go_on=decision.go_on,
        notes=decision.notes,
        params=config,
    ) as tracker:
        with system_metrics(tracker, job.recipe.tracking.system_metrics_s):
            finetune_tracked(job, tracker, inputs, run)
        if (above := current(layout, job.root)) is not None:
            add_curves(tracker, above, "finetune", 0)
    print(f"finished: {run.out / 'model'}" + ("" if run.finetune.full else f", {run.out / 'adapter'}"))
