"""One arm with one seed: align the pretrained model and score it on held-out prompts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.alignment.inputs import BASE
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.latents import scorer_options
from experiments.studies.harness import Run, Study, mark_of, model_of
from experiments.studies.objectives.arms import Arm, fitted, optimizer_steps
from experiments.studies.objectives.config import CHOSEN, TIES
from experiments.studies.objectives.material import Material
from experiments.studies.scores import Scoring, score_clips
from experiments.studies.tables import metric_means
from finetune.align_run import AlignRun
from finetune.launch import align_model
from pretrain.config import to_json
from pretrain.data.corpus.texts import ALIGN_HELD_OUT
from pretrain.files import read_json, write_json
from pretrain.generate import generate
from pretrain.launch.torchrun import METRICS

SPENT = "spent.json"
PARTS = ("rollout", "score", "update")  # of a round, by what metrics.jsonl calls them
JUDGING_ROUNDS = 2.5  # generation and scoring of the held-out prompts cost about this many rounds


@dataclass(frozen=True)
class Aligner:
    """State shared by all arms."""

    study: Study
    material: Material
    scoring: Scoring
    ranks: int

    def run_of(self, arm: Arm) -> Run:
        """Run of an arm.

        Folder and mark depend on what the arm is trained on and how; the mark also on how it is scored.
        """
        material, sections, trained = self.material, self.material.sections, [*self.material.trained_on]
        stages = {}
        if arm.config:
            trained += [self._align_run(arm, Path()).recipe_hash(), self.ranks, arm.prompts]
            trained += [material.votes_mark] if arm.voted else []
            trained += [to_json(sections.objectives.curation)] if arm.prompts != "all" else []
            trained += [material.pilot_mark] if arm.name == CHOSEN else []
            rounds = arm.phase.rounds  # votes on a budget's clips cost as much as rolling them out
            stages = {"align": (rounds * (2.0 if arm.voted else 1.0), rounds)}
        folder = material.folder / "runs" / f"{arm.label}-{mark_of(trained)}"
        prompts = [material.inputs[f"{ALIGN_HELD_OUT}.jsonl"], material.inputs["syncnet_judge"]]
        scored = [*prompts, list(self.scoring.metrics), sections.objectives.num_prompts]
        return Run(arm.label, folder, mark_of(to_json(sections.generate), scored), stages, JUDGING_ROUNDS)

    def run(self, run: Run, arm: Arm) -> None:
        """Align, generate and score; the run's result is written last.

        Raises Interrupted if a signal ended the alignment, ValueError or OSError in one line for a failure.
        """
        tags = {"nava.arm": arm.name, "nava.seed": str(arm.seed)}
        config = {
            "align": to_json(arm.config) if arm.config else {},
            "generate": to_json(self.material.sections.generate),
        }
        with self.study.tracked_run(run, tags, config) as tracker:
            model, cost = self.study.layout.model(BASE), {}
            if arm.config:
                model, cost = self._aligned(run, arm, tracker)
            scores = self._scored(run, model)
            tracker.log_metrics(metric_means(scores), arm.phase.rounds if arm.config else 0)
            spent = read_json(run.folder / SPENT, f"remove {run.folder}")
            seconds = {"align": spent.get("align", 0.0), "judge": spent[f"judge-{run.mark}"]}
            result = {"arm": arm.name, "seed": arm.seed, "scores": scores, "cost": cost, "seconds": seconds}
            write_json(run.result, result)
            shutil.rmtree(run.folder / "align" / "checkpoint", ignore_errors=True)

    def _align_run(self, arm: Arm, out: Path, **paths: Any) -> AlignRun:
        parts = {"base": Path(), "codec": Path(), "prompts": Path(), "scorer": ("", {}), **paths}
        return AlignRun(config=arm.aligned, out=out, **parts)

    def _aligned(self, run: Run, arm: Arm, tracker: SpoolTracker) -> tuple[Path, dict[str, Any]]:
        """The aligned model, and its cost."""
        material, layout, pairs, clips = self.material, self.study.layout, None, None
        cost: dict[str, Any] = {"before": {}}
        if arm.voted:
            pairs, clips, count = material.pairs(arm.name == TIES)
            arm, made = fitted(arm, material.sections.align, self.ranks, count), material.votes()
            before = {"rollout": made["rollout"], "score": made["vote"]}
            cost = {"before": before, "pairs": count, "summary": made["summary"]}
        prompts = material.prompts(arm)
        if arm.name == CHOSEN:
            cost = {"before": {"pilot": material.pilot()["seconds"]}}
        align = self._align_run(
            arm,
            run.folder / "align",
            base=layout.model(BASE),
            codec=layout.codec,
            prompts=prompts,
            trackers={"experiments.runs.tracker:SpoolTracker": {"folder": str(tracker.folder.resolve())}},
            scorer=(
                "experiments.scoring.latents:AlignScorer",
                scorer_options(arm.aligned, layout.corpus, layout.codec, layout.syncnet),
            ),
            pairs=pairs,
            clips=clips,
        )
        with _timed(run.folder, "align"):
            result = align_model(align, self.ranks)
        model, phase = model_of(result, f"{arm.label} stopped after round"), arm.phase
        tracker.set_tags(
            {CHECKPOINT_TAG: checkpoint_of(model), "nava.parent_checkpoint": checkpoint_of(align.base)}
        )
        steps, clips_per_step = optimizer_steps(phase)
        rolled = phase.rounds * phase.prompts_per_round * phase.clips_per_prompt
        return model, {
            **cost,
            "rounds": rounds_cost(align.out / METRICS, phase.rounds),
            "optimizer_steps": steps,
            "clips_per_step": clips_per_step,
            "clips": material.stored[0] * material.stored[1] if arm.voted else rolled,
        }

    def _scored(self, run: Run, model: Path) -> dict[str, Any]:
        out, clips = run.folder / f"scores-{run.mark}.json", run.folder / "clips"
        if not out.is_file():
            sections, layout = self.material.sections, self.study.layout
            prompts = layout.prompts / f"{ALIGN_HELD_OUT}.jsonl"
            limit = sections.objectives.num_prompts or None
            with _timed(run.folder, f"judge-{run.mark}"):
                generate(sections.generate, model, layout.codec, prompts, clips, limit, aside=True)
                score_clips(clips, self.scoring, out)
        return read_json(out, f"remove {run.folder}")


def rounds_cost(metrics: Path, rounds: int) -> dict[str, float]:
    """Seconds of rollout, scoring, update and the rest in `rounds` rounds.

    Rounds missing in the log are extrapolated by the mean of the others.
    """
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in logged if "seconds_per_step" in row]
    if not rows:
        raise ValueError(f"{metrics}: no round in it; remove {metrics.parent}")
    found = {name: rounds * sum(row[f"seconds/{name}"] for row in rows) / len(rows) for name in PARTS}
    whole = rounds * sum(row["seconds_per_step"] for row in rows) / len(rows)
    return {name: round(value, 2) for name, value in {**found, "other": whole - sum(found.values())}.items()}


@contextmanager
def _timed(folder: Path, name: str) -> Iterator[None]:
    """Add the body's seconds to FOLDER/spent.json, even on failure."""
    started = time.monotonic()
    try:
        yield
    finally:
        path = folder / SPENT
        spent = read_json(path, f"remove {folder}") if path.is_file() else {}
        write_json(path, {**spent, name: round(spent.get(name, 0.0) + time.monotonic() - started, 1)})
