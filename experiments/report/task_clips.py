"""Sections of the page with clips of one modality alone, and what of these tasks the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.layout import ONE_MODALITY_SETS
from experiments.report.cards import Details, detail_of, transcript_and_voices
from experiments.report.page import Card, Section
from experiments.report.pictures import clip_png
from experiments.scoring.samples import SourceClip, generated_samples
from pretrain.files import read_json

NUM_EXAMPLES = 4
RESOLVED = "resolved.json"  # of a stage's folder: what it was trained with
HEADINGS = {
    "T2A": ("Sound alone (T2A)", "From the text and a reference voice, without a picture."),
    "T2V": ("Picture alone (T2V)", "From the text, without sound; no metric of the page applies to it."),
}


def task_sections(generated: Path, pretrain: Mapping[str, Path], details: Details) -> list[Section]:
    """The first clips of T2A and of T2V; a set that was not generated is left out.

    generated: a folder per prompt set; pretrain: stages in order, each with its folder. Raises ValueError for
    a T2A clip that was not scored, FileNotFoundError or ValueError for a damaged set or resolved.json.
    """
    sections = []
    for name, (task, _) in ONE_MODALITY_SETS.items():
        folder = generated / name
        if (folder / "index.jsonl").is_file():
            heading, about = HEADINGS[task]
            samples = generated_samples(folder, "speech", limit=NUM_EXAMPLES)
            rows = [(one.clip.prompt, [_card(name, folder, one, details)]) for one in samples]
            sections.append(Section(heading, f"{about} {trained_words(task, pretrain)}", rows))
    return sections


def trained_words(task: str, pretrain: Mapping[str, Path]) -> str:
    """How much of the task the model was trained on, as a sentence; from what each stage was trained with."""
    told: list[str] = []
    for name, folder in pretrain.items():
        if not (folder / RESOLVED).is_file():
            return f"What of {task} the model was trained on is not known ({name} has no {RESOLVED})."
        resolved = read_json(folder / RESOLVED, "run the stage again")
        stage = resolved["config"]["stages"][resolved["stage"]]
        share = stage["tasks"].get(task, 0.0) / sum(stage["tasks"].values())
        if share:
            told.append(f"{100 * share:.2g} % of the {stage['steps']} steps of {name}")
    if not told:
        return f"The model was not trained on {task}: this is what it makes of it untaught."
    rest = ", in no other stage" if len(told) < len(pretrain) else ""
    return f"Trained on {task} in {' and '.join(told)}{rest}."


def _card(prompt_set: str, folder: Path, sample: SourceClip, details: Details) -> Card:
    clip = sample.clip
    silent = clip.waveform is None
    heard = ("", "") if silent else transcript_and_voices(detail_of(prompt_set, sample, details))
    media = folder / f"{sample.data_id}{'.mp4' if clip.frames is not None else '.wav'}"
    return Card(
        sample.source,
        media.read_bytes(),
        clip_png(clip),
        *heard,
        words=" ".join(clip.spans),
        wanted_voices=" ".join(clip.voices),
        lips=None,
        has_picture=clip.frames is not None,
        has_sound=not silent,
    )
