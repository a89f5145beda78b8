"""`nava study seeds`: the recipe's alignment from several seeds on one pretrained model, each held against
the judges."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline.align import align_run, pairs_and_clips
from experiments.report.evaluate import compare
from experiments.report.verdicts import alignment_verdicts
from experiments.runs.run import Interrupted, single_run
from experiments.scoring.options import reward_options
from experiments.scoring.rows import Row, number, read_scores
from experiments.scoring.samples import generated_samples
from experiments.scoring.sets import ALIGN_JUDGES, ALIGN_SET, MAIN_SET, REWARDS, SCORES, rows_of
from experiments.studies.seeds_page import page
from finetune.align_run import AlignRun
from finetune.launch import align_model
from pretrain.files import read_json, replacing, write_json
from pretrain.generate import generate
from pretrain.jsonl import dump, scan
from pretrain.launch.launch import finished
from pretrain.launch.stage_run import IDENTITY
from rewards.catalog import open_rewards
from rewards.guardrails import GuardrailLimits
from rewards.options import fill

NAME, ROWS = "seeds", "rows.jsonl"
KEY: tuple[str, str] = (ALIGN_SET, "aligned")


@dataclass(frozen=True)
class SeedResult:
    """One alignment: what `before_after` and the simulated raters say of it."""

    seed: int
    seconds: float  # of alignment, on this machine
    found: dict[str, Any]
    rows: Sequence[Row]


def study_seeds(job: StageJob, seeds: int) -> dict[str, Any]:
    """Align with seeds 0 to `seeds` - 1, generate the held-out prompts, score, and write OUT/study/seeds.json
    and .md.

    The pipeline's own alignment serves for its seed. What is finished is kept, and a killed alignment goes
    on. Raises FileNotFoundError or ValueError in one line before anything is trained, Interrupted where a
    signal ended it.
    """
    if seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, got {seeds}")
    layout = job.layout
    groups = read_scores(layout.scores / SCORES)
    before, codec = groups.get((ALIGN_SET, "generated")), groups.get((MAIN_SET, "codec"))
    if not before or not codec:
        raise ValueError(
            f"{layout.scores / SCORES}: no clips of {ALIGN_SET} before alignment; run `nava demo` first"
        )
    folder = layout.out / "study"
    with single_run(f"study_{NAME}", {"seeds": seeds}, {"nava.study": NAME}, layout, job.root) as tracker:
        results = [_one(job, seed, before, codec, folder / NAME) for seed in range(seeds)]
        together = _measured(
            job, before, mean_rows([result.rows for result in results]), codec, folder / NAME / "votes.jsonl"
        )
        study = {
            "study": NAME,
            "seeds": seeds,
            "verdicts": [vars(verdict) for verdict in alignment_verdicts(together)],
            "together": together,
            "each": {
                str(result.seed): {"align_seconds": result.seconds, **result.found} for result in results
            },
        }
        write_json(folder / f"{NAME}.json", study)
        with replacing(folder / f"{NAME}.md") as temporary:
            temporary.write_text(page(study))
        for suffix in ("json", "md"):
            tracker.log_artifact(str(folder / f"{NAME}.{suffix}"))
    return study


def _one(job: StageJob, seed: int, before: Sequence[Row], codec: Sequence[Row], root: Path) -> SeedResult:
    recipe = dataclasses.replace(job.recipe, align=dataclasses.replace(job.recipe.align, seed=seed))
    run = align_run(dataclasses.replace(job, recipe=recipe), None, *pairs_and_clips(job))
    folder = root / f"seed-{seed}"
    run = dataclasses.replace(run, out=_done_by_the_pipeline(job.layout, run) or folder / "align")
    result = align_model(run, job.ranks, job.port)
    if result.model is None:
        raise Interrupted(
            f"seed {seed} stopped after round {result.step} with a checkpoint; the same command goes on "
            "from there"
        )
    rows = _rows(job, result.model, folder)
    found = _measured(job, before, rows, codec, folder / "votes.jsonl")
    return SeedResult(seed, _seconds(run.out / "metrics.jsonl"), found, rows)


def _done_by_the_pipeline(layout: Layout, run: AlignRun) -> Path | None:
    path = layout.align / IDENTITY
    same = path.is_file() and read_json(path, "align again") == json.loads(json.dumps(run.identity()))
    return layout.align if same and finished(layout.align) else None


def _rows(job: StageJob, model: Path, folder: Path) -> list[Row]:
    """Rows of the held-out clips of this model, kept with the model's id."""
    layout, path = job.layout, folder / ROWS
    mark = {
        "model": read_json(model / "config.json", "align again")["checkpoint_id"],
        "generate": str(job.recipe.generate),
    }
    if not (folder / "mark.json").is_file() or read_json(folder / "mark.json", "remove it") != mark:
        clips = folder / ALIGN_SET
        generate(job.recipe.generate, model, layout.codec, layout.prompts / f"{ALIGN_SET}.jsonl", clips, None)
        samples, names = generated_samples(clips, "speech", source="aligned"), (*REWARDS, *ALIGN_JUDGES)
        options = reward_options(
            names, layout.corpus, layout.syncnet, job.recipe.score.vocabulary, job.recipe.score.num_processes
        )
        with open_rewards(names, options) as rewards:
            scores = {
                reward.name: {KEY: reward.score([sample.clip for sample in samples])} for reward in rewards
            }
        limits = fill(GuardrailLimits, job.recipe.align.guardrails, "align.guardrails")
        dump(path, rows_of(limits, {KEY: samples}, scores, {KEY}))
        write_json(folder / "mark.json", mark)
    return [row for _, row in scan(path) if isinstance(row, Mapping)]


def _measured(
    job: StageJob, before: Sequence[Row], after: Sequence[Row], codec: Sequence[Row], votes: Path
) -> dict[str, Any]:
    align = job.recipe.align
    return compare(job.recipe.evaluate, before, after, codec, votes, align.rubric.weights(), align.guardrails)


def _seconds(metrics: Path) -> float:
    rows = [row for _, row in scan(metrics) if isinstance(row, Mapping)]
    return round(sum(row.get("seconds_per_step", 0.0) for row in rows), 1)


def mean_rows(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """A row per prompt; a value that some seed could not be scored on is the mean of the others. Raises
    ValueError for other prompts."""
    by_id = [{row["data_id"]: row for row in rows} for rows in runs]
    if any(rows.keys() != by_id[0].keys() for rows in by_id):
        raise ValueError(
            "seeds: not all of them answer the same prompts; remove OUT/study/seeds and run it again"
        )
    return [_mean([rows[name] for rows in by_id]) for name in by_id[0]]


def _mean(rows: Sequence[Row]) -> Row:
    scorers = rows[0]["scores"].keys()
    parts = {name: _means([row["parts"].get(name, {}) for row in rows]) for name in scorers}
    return {
        **rows[0],
        "scores": _means([row["scores"] for row in rows]),
        "parts": parts,
        "guardrails": _means([row.get("guardrails", {}) for row in rows]),
        "flags": [flag for row in rows for flag in row.get("flags", ())],
    }


def _means(values: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for some in values for name in some)
    found = {
        name: [known for some in values if not math.isnan(known := number(some.get(name)))] for name in names
    }
    return {name: sum(known) / len(known) if known else None for name, known in found.items()}
