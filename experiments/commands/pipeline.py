"""Verbs that run one stage of the pipeline, outside DVC."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.commands.options import JsonFlag, RecipeName, SetOptions, recipe_for
from experiments.layout import Layout

if TYPE_CHECKING:
    from experiments.job import StageJob

GATE_FAILED = 3  # exit code


def corpus(recipe: RecipeName = "mini", /, settings: SetOptions = (), out: Path = Path("out")) -> None:
    """Render the corpus: clips, sounds, references, prompt sets and manifests, into OUT/corpus."""
    _run("corpus", _job(recipe, settings, out))


def codec(recipe: RecipeName = "mini", /, settings: SetOptions = (), out: Path = Path("out")) -> None:
    """Fit the codecs on OUT/corpus and store them with their reconstruction error, into OUT/codec."""
    _run("codec", _job(recipe, settings, out))


def syncnet(recipe: RecipeName = "mini", /, settings: SetOptions = (), out: Path = Path("out")) -> None:
    """Train the sync network of the reward and that of the judge, and evaluate both, into OUT/syncnet."""
    _run("syncnet", _job(recipe, settings, out))


def rollout(
    recipe: RecipeName = "mini",
    /,
    model: Annotated[
        Path | None,
        tyro.conf.arg(help="model folder, or models:/NAME@ALIAS; default OUT/pretrain/stage3/model"),
    ] = None,
    codec: Annotated[
        Path | None,
        tyro.conf.arg(help="codec folder; default OUT/codec, or that of a registered model"),
    ] = None,
    prompts: Annotated[Path | None, tyro.conf.arg(help="prompts JSONL; default the pipeline's")] = None,
    to: Annotated[
        Path | None, tyro.conf.arg(metavar="STORE", help="folder of the clips; default OUT/rollouts")
    ] = None,
    mp4: Annotated[bool, tyro.conf.arg(help="write every clip as mp4 too, into STORE/media")] = False,
    overwrite: Annotated[bool, tyro.conf.arg(help="replace a store of other inputs at --to")] = False,
    settings: SetOptions = (),
    out: Path = Path("out"),
) -> None:
    """Sample several clips of each alignment prompt from the pretrained model, into OUT/rollouts; or of any
    prompts from any model, into the store --to.

    A store holds latents, which `gsb_dpo` learns from; --mp4 makes files for people to vote on. Prompts that
    an alignment on the same prompts holds out (align.stop.prompts of them) are left out. With --to a store
    of the same inputs is kept, one of others is replaced with --overwrite only, and other folders never.
    The model computes on a GPU where there is one (--set rollout.device=cpu for none), rollout.batch clips at
    a time.
    """
    job = _job(recipe, settings, out)
    store = to or job.layout.rollouts
    if to is None and (model or codec or prompts or overwrite):
        raise ValueError(f"--to: name a folder for these clips; {store} is that of the pipeline")
    from experiments.runs.registry import model_and_codec

    if model or codec:
        own = model or job.layout.model("stage3")
        model, codec = model_and_codec(own, codec, out, job.layout.codec)
    if to is None:
        _run("rollout", job)
    else:
        _rollout_to(to, job, model, codec, prompts, overwrite)
    if mp4:
        from experiments.pipeline.rollout import add_media
        from experiments.runs.inputs import digests_of_inputs
        from experiments.runs.run import record_run

        start_s = time.monotonic()
        read = digests_of_inputs(store, codec or job.layout.codec)
        written = add_media(store, codec or job.layout.codec)
        tags, seconds = {"nava.output": str(store)}, time.monotonic() - start_s
        record_run("rollout media", {}, tags, job.layout, job.root, read, [store], seconds, whole=True)
        print(f"{store / 'media'}: {written} clips to vote on; then `nava gsb export VOTES --clips {store}`")


def _rollout_to(
    to: Path, job: StageJob, model: Path | None, codec: Path | None, prompts: Path | None, overwrite: bool
) -> None:
    from experiments.pipeline.rollout import PROMPTS, RolloutInputs, rollout_of

    layout = job.layout
    inputs = RolloutInputs(
        config=job.recipe.rollout,
        sizes=job.recipe.align,
        model=model or layout.model("stage3"),
        codec=codec or layout.codec,
        prompts=prompts or layout.prompts / PROMPTS,
        out=to,
    )
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run

    read, start_s = digests_of_inputs(inputs.model, inputs.codec, inputs.prompts), time.monotonic()
    store = rollout_of(inputs, overwrite)
    tags, seconds = {"nava.recipe": job.recipe.name, "nava.output": str(to)}, time.monotonic() - start_s
    record_run("rollout", as_plain(inputs.config), tags, layout, job.root, read, [to], seconds)
    print(
        f"{to}: {len(store.places)} clips of {len({row['case_id'] for row in store.places.values()})} prompts"
    )


def curate_prompts(
    recipe: RecipeName = "mini", /, settings: SetOptions = (), out: Path = Path("out")
) -> None:
    """Curate the prompts that alignment trains on: diverse ones with low reward of their clips in
    OUT/rollouts, into OUT/chosen."""
    _run("curate_prompts", _job(recipe, settings, out))


def votes(recipe: RecipeName = "mini", /, settings: SetOptions = (), out: Path = Path("out")) -> None:
    """SIMULATED raters vote on OUT/rollouts by the scores of the judges: votes.jsonl and pairs.jsonl, into
    OUT/votes.

    Votes of people on clips of `nava rollout --mp4` have the same format. `nava gsb export VOTES --clips
    OUT/rollouts` makes pairs of either; `nava gsb stats VOTES --ours MODEL` counts them for one of the clips'
    models.
    """
    _run("votes", _job(recipe, settings, out))


def evaluate(
    recipe: RecipeName = "mini",
    /,
    settings: SetOptions = (),
    out: Path = Path("out"),
    reports: Path = Path("reports"),
    gates: bool = False,
    as_json: JsonFlag = False,
) -> int:
    """Score real, codec and generated clips (OUT/scores), summarise into REPORTS/demo.json, and
    check the recipe's quality gates.

    --gates scores nothing: it checks the gates against the numbers in REPORTS and exits with 3 when one fails
    or was not measured. --json prints the results of the gates as JSON.
    """
    job = _job(recipe, settings, out, reports)
    if gates and not job.recipe.evaluate.gates:
        raise ValueError("evaluate.gates: the recipe has none; give them in params.yaml or by --set")
    if not gates:
        from experiments.runs.invocation import invocation
        from experiments.stages import check_inputs

        check_inputs("score", job)  # before there is a run
        with invocation(f"evaluate {job.recipe.name}", job.layout, job.root):
            _run("score", job)
            _run("evaluate", job)
    passed = _show_gates(job, as_json)
    return GATE_FAILED if gates and not passed else 0


def report(
    recipe: RecipeName = "mini",
    /,
    settings: SetOptions = (),
    out: Path = Path("out"),
    reports: Path = Path("reports"),
) -> None:
    """Write REPORTS/demo.html from the measurements and the clips, and check the recipe's quality gates."""
    job = _job(recipe, settings, out, reports)
    _run("report", job)
    _show_gates(job)


def _show_gates(job: StageJob, as_json: bool = False) -> bool:
    """Prints every gate's result; whether all passed."""
    from experiments.report.gates import all_passed, check_gates, read_reports
    from experiments.report.summary import print_gates

    layout = job.layout
    results = check_gates(job.recipe.evaluate.gates, read_reports(layout.metrics, layout.alignment))
    passed = all_passed(results)
    if as_json:
        found = {"passed": passed, "gates": [result.as_json() for result in results]}
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print_gates(results)
    return passed


def _job(recipe: str, settings: tuple[str, ...], out: Path, reports: Path = Path("reports")) -> StageJob:
    from experiments.job import StageJob

    return StageJob(recipe=recipe_for(recipe, settings), layout=Layout(out=out, reports=reports))


def _run(stage: str, job: StageJob) -> None:
    from experiments.stages import run_stage

    run_stage(stage, job)
