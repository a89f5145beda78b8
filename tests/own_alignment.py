"""Inputs for `nava align`: an imported debug model, its codec, prompts with voices, a rubric file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from align_world import WORDS, config, write_world
from convert_cases import nava_tensors, write_checkpoint
from PIL import Image
from test_codecs import sounds

from experiments.recipes.base import Recipe
from finetune.objectives.gsb_dpo import GsbDpoPhase
from finetune.recipe import RubricConfig
from pretrain.convert.importing import ImportConfig, plan_import, run_import
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.generation.config import GenerateConfig
from pretrain.media.write import write_wav
from pretrain.model.flavors import flavor
from pretrain.sampling import SamplerConfig

RUBRIC: dict[str, Any] = {
    "items": {
        "snr_estimate_db": {"weight": 1.0},
        "sim_resemblyzer": {"weight": 0.5},
        "identity_colour_edge": {"weight": 0.5},
    },
    "guardrails": {"min_loudness_dbfs": -70},
}


def recipe() -> Recipe:
    """Two rounds at debug size, by its dotted name `own_alignment.recipe`."""
    align = config(
        phase={"prompts_per_round": 2, "clips_per_prompt": 4, "epochs": 1},
        phases={"gsb_dpo": GsbDpoPhase(pairs_per_round=4, steps_per_epoch=1, rounds=1)},
        num_frames=13,
    )
    sampler = SamplerConfig(solver="euler", steps=4, guidance=NO_GUIDANCE)
    align = dataclasses.replace(align, rubric=RubricConfig(audio={"snr_estimate_db": 1.0}))
    return Recipe(name="own", align=align, generate=GenerateConfig(sampler=sampler))


def write_inputs(folder: Path) -> Path:
    """model/, codec/, prompts.jsonl (half with a first frame), held_out.jsonl (one with) and rubric.yaml."""
    write_world(folder)
    source = write_checkpoint(folder / "published", nava_tensors(flavor("debug_published")))
    plan = plan_import(ImportConfig(kind="nava", flavor="debug_published"), source)
    run_import(plan, folder / "model")
    write_wav(folder / "long.wav", sounds()[0].repeat(20).numpy(), 16_000)
    picture(folder / "first.png", 32)
    frames = [{}, {"image_path": "first.png"}]
    rows = [row(f"own{index}", word, **frames[index % 2]) for index, word in enumerate(WORDS)]
    prompts(folder / "prompts.jsonl", rows[:8])
    prompts(folder / "held_out.jsonl", rows[8:])
    rubric(folder / "rubric.yaml", RUBRIC)
    return folder


def picture(path: Path, size: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def row(data_id: str, word: str, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": f"A man says <S>{word}<E>.",
        "data_id": data_id,
        "num_frames": 13,
        "spk_wavs": ["long.wav"],
        **changes,
    }


def prompts(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def rubric(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def arguments(inputs: Path, to: Path, **changes: str | None) -> list[str]:
    """Command line of an alignment of these inputs; None leaves an option out."""
    options: dict[str, str | None] = {
        "model": str(inputs / "model"),
        "codec": str(inputs / "codec"),
        "prompts": str(inputs / "prompts.jsonl"),
        "held-out": str(inputs / "held_out.jsonl"),
        "rubric": str(inputs / "rubric.yaml"),
        "to": str(to),
        "out": str(to.parent / "out"),
        "nproc": "1",
        **changes,
    }
    given = [(f"--{name}", value) for name, value in options.items() if value is not None]
    return ["align", "own_alignment.recipe", *(part for pair in given for part in pair)]
