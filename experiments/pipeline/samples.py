"""Sample clips of a trained model and their contact sheet, for inspection; no stage reads them."""

from __future__ import annotations

from pathlib import Path

from experiments.layout import Layout
from experiments.report.pictures import contact_sheet
from experiments.scoring.samples import generated_samples
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig

PROMPTS = "pretrain_seen.jsonl"
NUM_SAMPLES = 4
SHEET = "contact_sheet.png"


def make_samples(config: GenerateConfig, layout: Layout, stage: str) -> list[Path]:
    """Generate clips of the first prompts by the stage's model, and their contact sheet, into `samples/`.

    Returns the files to log with the run; none without prompts or codec.
    """
    prompts, folder = layout.prompts / PROMPTS, layout.pretrain(stage) / "samples"
    if not prompts.is_file() or not layout.codec.is_dir():
        return []
    generate(config, layout.model(stage), layout.codec, prompts, folder, NUM_SAMPLES, aside=True)
    samples = generated_samples(folder, "speech", limit=NUM_SAMPLES)
    captions = [f"after {stage}, asked for: {' '.join(sample.clip.spans)}" for sample in samples]
    rows = [{"generated": (sample.clip, caption)} for sample, caption in zip(samples, captions, strict=True)]
    sheet = folder / SHEET
    sheet.write_bytes(contact_sheet(rows, [sample.clip.prompt for sample in samples]))
    return [sheet, *sorted(folder.glob("*.mp4"))]
