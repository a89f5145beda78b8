"""Stages `generate` and `generate_aligned`: clips of the pretrained and of the aligned model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiments.job import StageJob
from experiments.layout import ONE_MODALITY_SETS
from experiments.runs.tracker import SpoolTracker
from pretrain.data.corpus.texts import ALIGN_HELD_OUT
from pretrain.generate import generate

LOGGED_CLIPS = 4  # of each prompt set
PROMPTS = "pretrain_seen"  # of the sets with one modality alone


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout = job.layout
    names = [path.stem for path in sorted(layout.prompts.glob("pretrain_*.jsonl"))]
    for name in (*names, ALIGN_HELD_OUT):
        _generate(job, tracker, layout.model("stage3"), name, layout.generated / name)
    for name, (task, count) in ONE_MODALITY_SETS.items():
        prompts, config = layout.prompts / f"{PROMPTS}.jsonl", replace(job.recipe.generate, task=task)
        clips = layout.generated / name
        generate(config, layout.model("stage3"), layout.codec, prompts, clips, count, aside=True)
        _log_clips(tracker, clips, name)


def run_aligned(job: StageJob, tracker: SpoolTracker) -> None:
    layout = job.layout
    _generate(job, tracker, layout.align / "model", ALIGN_HELD_OUT, layout.aligned / ALIGN_HELD_OUT)


def _generate(job: StageJob, tracker: SpoolTracker, model: Path, prompts: str, folder: Path) -> None:
    path = job.layout.prompts / f"{prompts}.jsonl"
    generate(job.recipe.generate, model, job.layout.codec, path, folder, aside=True)
    _log_clips(tracker, folder, prompts)


def _log_clips(tracker: SpoolTracker, folder: Path, name: str) -> None:
    clips = sorted(folder.glob("*.mp4")) or sorted(folder.glob("*.wav"))
    for clip in clips[:LOGGED_CLIPS]:
        tracker.log_artifact(str(clip), f"clips/{name}")
