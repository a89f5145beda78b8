"""What a training stage reads: where its encoded sets are, and which codec made them."""

from __future__ import annotations

import shutil
from pathlib import Path

from experiments.layout import Layout
from experiments.report.pictures import contact_sheet
from experiments.scoring.samples import generated_samples
from pretrain.files import read_json
from pretrain.generate import GenerateConfig, generate
from pretrain.launch.stage_run import digests_of_sets, manifests_of_sets
from pretrain.launch.torchrun import IDENTITY
from pretrain.recipe import PretrainConfig
from pretrain.storage import place


def latents_of(config: PretrainConfig, layout: Layout) -> Path:
    """`pretrain.latents` where the recipe or a setting names a place, else OUT/latents."""
    return place(config.latents) if config.latents else layout.latents


def codec_id_of(config: PretrainConfig, stage: str, layout: Layout) -> str:
    """The codec that latents are held against: OUT/codec, or for a place of one's own the one that its sets
    name.

    Raises FileNotFoundError without OUT/codec, ValueError where sets were made by different codecs.
    """
    if not config.latents:
        path = layout.codec / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; fit the codec first: `nava codec`")
        return str(read_json(path, "fit the codec first: `nava codec`")["codec_id"])
    manifests = manifests_of_sets(latents_of(config, layout), config.stage(stage))
    found = {name: str(manifest["codec_id"]) for name, manifest in manifests.items()}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{name} by {codec}" for name, codec in found.items())
        raise ValueError(f"{config.latents}: sets of different codecs ({named}); encode them with one")
    return next(iter(found.values()), "")


def check_same_data(config: PretrainConfig, stage: str, layout: Layout) -> None:
    """Raises ValueError where OUT/pretrain/STAGE was trained on sets that have changed since."""
    path = layout.pretrain(stage) / IDENTITY
    if not path.is_file():
        return
    before = read_json(path, f"remove {path.parent}").get("latents")
    after = digests_of_sets(latents_of(config, layout), config.stage(stage))
    if before is not None and before != after:
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        what = f"trained on other latents ({', '.join(changed)} changed)"
        raise ValueError(
            f"{path.parent}: {what}; give --no-resume to train anew, or --out for another folder"
        )


PROMPTS = "pretrain_seen.jsonl"
NUM_SAMPLES = 4
SHEET = "contact_sheet.png"


def make_samples(config: GenerateConfig, layout: Layout, stage: str) -> list[Path]:
    """Clips of the first prompts by the stage's model and their contact sheet, in `samples/` of the stage's
    folder.

    Returns the files to keep with the run; none where there are no prompts or no codec to make them with.
    """
    prompts, folder = layout.prompts / PROMPTS, layout.pretrain(stage) / "samples"
    if not prompts.is_file() or not layout.codec.is_dir():
        return []
    shutil.rmtree(folder, ignore_errors=True)
    generate(config, layout.model(stage), layout.codec, prompts, folder, NUM_SAMPLES)
    samples = generated_samples(folder, "speech", limit=NUM_SAMPLES)
    captions = [f"after {stage}, asked for: {' '.join(sample.clip.spans)}" for sample in samples]
    rows = [{"generated": (sample.clip, caption)} for sample, caption in zip(samples, captions, strict=True)]
    sheet = folder / SHEET
    sheet.write_bytes(contact_sheet(rows, [sample.clip.prompt for sample in samples]))
    return [sheet, *sorted(folder.glob("*.mp4"))]
