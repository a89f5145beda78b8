"""`nava align`: refine the pretrained model by rewards on its own clips, or by votes on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import RecipeName, SetOptions, recipe_for
from experiments.commands.pretrain import must_train
from experiments.layout import Layout

if TYPE_CHECKING:
    from experiments.job import StageJob
    from finetune.align_run import AlignRun
    from pretrain.launch.launch import StageResult

PairsFile = Annotated[
    Path | None,
    tyro.conf.arg(help="pairs.jsonl of `nava gsb export`, for gsb_dpo; default OUT/votes/pairs.jsonl"),
]
RolloutFolder = Annotated[
    Path | None,
    tyro.conf.arg(help="rollout store of the clips in those pairs; default OUT/rollouts"),
]


RayCluster = Annotated[
    tuple[str, ...] | None,
    tyro.conf.arg(
        metavar="[ADDRESS]",
        help="run on Ray: embedded, or the cluster at HOST:PORT, whose nodes must see all paths",
    ),
]


def align(
    recipe: RecipeName = "mini",
    /,
    nproc: int = 0,
    port: int = 0,
    settings: SetOptions = (),
    out: Path = Path("out"),
    pairs: PairsFile = None,
    clips: RolloutFolder = None,
    ray: RayCluster = None,
    resume: Annotated[bool, tyro.conf.arg(help="resume an interrupted run; --no-resume starts over")] = True,
) -> None:
    """Align OUT/pretrain/stage3/model by the algorithms of align.sequence, into OUT/align.

    Writes adapter/ (a PEFT adapter), model/ (merged, for `nava generate --model`), metrics.jsonl, state.json
    and samples/round-N.
    --nproc 0 is one rank per GPU, or two ranks without a GPU. An interrupted run resumes from its last round.

    --ray runs rollouts and rewards in separate workers (section `ray` of the recipe: workers, pools,
      staleness). With staleness 0 the result is that of local ranks; a lost worker or rank is replaced.
      rounds.jsonl lists the samples that each round trained on.
    """
    from experiments.job import StageJob
    from experiments.pipeline.align import align_run, align_tracked, pairs_and_clips
    from experiments.runs.run import tracked
    from experiments.stages import config_of
    from finetune.launch import alone
    from pretrain.launch.torchrun import check_port

    if nproc < 0:
        raise ValueError(f"--nproc: expected the number of ranks, or 0 for one per GPU, got {nproc}")
    if port:
        check_port(port)
    address = address_of(ray)
    if address and port:
        raise ValueError("--port is torchrun's; Ray's ranks find a port themselves: leave it out")
    job = StageJob(recipe=recipe_for(recipe, settings), layout=Layout(out=out), nproc=nproc, port=port)
    if not job.recipe.align.needs_pairs and (pairs or clips):
        raise ValueError(
            "--pairs and --clips belong to gsb_dpo; name it in align.sequence, or leave them out"
        )
    if pairs is None or clips is None:
        usual = pairs_and_clips(job)
        pairs, clips = pairs or usual[0], clips or usual[1]
    check_before(align_run(job, None, pairs, clips), job.ranks)
    config = config_of("align", job.recipe)
    if address:
        job.recipe.ray.rewards_of(list(job.recipe.align.rubric.routes()))
        config |= {"staleness": job.recipe.ray.staleness} if job.recipe.ray.staleness else {}
    with alone(job.layout.align):
        pass  # before anything there is replaced
    if must_train("align", "align", job.layout.align, job, resume, config=config):
        with tracked("align", job.recipe.name, config, job.layout, job.root, resume=True) as tracker:
            if address:
                tracker.set_tags({"nava.ray": address, "nava.staleness": str(job.recipe.ray.staleness)})
            align_tracked(job, tracker, pairs, clips, lambda run: _train(run, job, address))


def _train(run: AlignRun, job: StageJob, address: str) -> StageResult:
    """By ranks of torchrun, or on the Ray at `address`."""
    if not address:
        from finetune.launch import align_model

        return align_model(run, job.ranks, job.port)
    from experiments.scoring.latents import options_for
    from orchestration.align import align_on_ray

    return align_on_ray(run, job.ranks, job.recipe.ray, options_for, address)


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


def check_before(run: object, ranks: int) -> None:
    """Check what the ranks need, before anything is replaced. Raises ValueError or FileNotFoundError."""
    from experiments.scoring.latents import AlignScorer
    from finetune.align_run import AlignRun
    from finetune.prompts import read_prompt_set

    assert isinstance(run, AlignRun)
    run.identity()
    run.config.check_ranks(ranks)
    read_prompt_set(run.prompts, run.config, run.chosen, run.held_out)
    AlignScorer(**run.scorer[1]).close()
