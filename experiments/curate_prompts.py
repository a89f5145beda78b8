"""Which prompts alignment trains on: diverse ones that the pretrained model still does badly by the rewards it will be paid by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.store_scores import score_store
from finetune.curation import CurationConfig, choose, shortfall, text_features
from finetune.rollout_store import open_store
from pretrain.torchrun import write_json

CHOSEN = "chosen.json"


@dataclass(frozen=True, kw_only=True)
class PromptChoiceConfig:
    """How many prompts are kept, and how their clips are scored. Raises ValueError on impossible numbers."""

    curation: CurationConfig = field(default_factory=lambda: CurationConfig(gain_weight=0.9))
    batch: int = 64  # clips that are decoded at once
    num_processes: int = 2  # of the recogniser

    def __post_init__(self) -> None:
        if self.batch < 1 or self.num_processes < 1:
            raise ValueError(f"curate_prompts: batch and num_processes must be at least 1, got {self.batch} and {self.num_processes}")


def curate_prompts(
    config: PromptChoiceConfig, weights: Mapping[str, float], store: Path, codec: Path, corpus: Path, syncnet: Path, out: Path
) -> dict[str, Any]:
    """Writes `out`/chosen.json: data_ids, each prompt's gain, and what the choice is worth beside random ones; returns it.

    weights: of the rubric. A prompt's gain is the weighted sum of how far each reward of its clips lies below the best prompt's
    (`finetune.curation.shortfall`). Raises FileNotFoundError or ValueError in one line.
    """
    started = time.perf_counter()
    clips = open_store(store)
    found = score_store(clips, list(weights), codec, corpus, syncnet, config.batch, config.num_processes)
    cases = [clips.case(clip) for clip in found]
    prompts = {row["case_id"]: row["prompt"] for row in clips.places.values()}
    gains = prompt_gains({name: np.array([values[name] for values in found.values()]) for name in weights}, cases, weights)
    choice = choose(text_features([prompts[case] for case in gains]), np.array(list(gains.values())), config.curation)
    names = list(gains)
    chosen = {
        "data_ids": [names[index] for index in choice.indices],
        "gains": {name: round(gain, 4) if np.isfinite(gain) else None for name, gain in gains.items()},
        "report": choice.report, "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CHOSEN, chosen)
    return chosen


def prompt_gains(rewards: Mapping[str, np.ndarray], cases: list[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Case -> weighted sum of the shortfalls of each reward [N]; NaN where a reward could score none of its clips."""
    parts = {name: shortfall(values, cases) for name, values in rewards.items()}
    return {case: sum(weights[name] * parts[name][case] for name in weights) for case in dict.fromkeys(cases)}
