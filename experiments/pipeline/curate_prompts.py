"""Stage `curate_prompts`: training prompts of alignment, diverse and with low reward when pretrained."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.job import StageJob
from experiments.layout import CHOSEN
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.latents import score_store
from finetune.curation import CurationConfig, curate, shortfall, text_features
from finetune.gsb.simulated_pairs import own_names
from finetune.gsb.store_clips import clips_of
from finetune.recipe import AlignConfig
from finetune.rollout_store import RolloutStore, open_store
from pretrain.files import write_json
from pretrain.jsonl import dump
from rewards.catalog import CATALOG

SCORES = "scores.jsonl"


@dataclass(frozen=True, kw_only=True)
class PromptChoiceConfig:
    """How many prompts are kept, and how their clips are scored. Raises ValueError on impossible numbers."""

    curation: CurationConfig = field(default_factory=lambda: CurationConfig(gain_weight=0.9))
    batch: int = 64  # clips that are decoded at once
    num_processes: int = 2  # of the recogniser

    def __post_init__(self) -> None:
        if self.batch < 1 or self.num_processes < 1:
            raise ValueError(
                f"curate_prompts: batch and num_processes must be at least 1, got {self.batch} and "
                f"{self.num_processes}"
            )


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout, recipe = job.layout, job.recipe
    rewards = list(recipe.align.rubric.weights())
    options = recipe.reward_files.over(rewards, recipe.align.reward_options)
    curate_prompts(
        recipe.curate_prompts,
        dataclasses.replace(recipe.align, reward_options=options),
        layout.rollouts,
        layout.codec,
        layout.corpus,
        layout.syncnet,
        layout.chosen,
    )
    tracker.log_artifact(str(layout.chosen / CHOSEN))


def curate_prompts(
    config: PromptChoiceConfig,
    align: AlignConfig,
    store: Path,
    codec: Path,
    corpus: Path,
    syncnet: Path,
    out: Path,
) -> dict[str, Any]:
    """Write `out`/chosen.json and return it: data_ids, gains, and a comparison with random selections.

    A prompt's gain is the weighted sum, over the rubric of `align`, of each reward's shortfall from the best
    prompt's. `out`/scores.jsonl has the rewards of every clip by names that votes on the store use (for `nava
    gsb fit`). Raises FileNotFoundError or ValueError in one line.
    """
    started, clips = time.perf_counter(), open_store(store)
    gains, found = store_gains(align, clips, codec, corpus, syncnet, config.batch, config.num_processes)
    prompts = {row["case_id"]: row["prompt"] for row in clips.places.values()}
    choice = curate(
        text_features([prompts[case] for case in gains]), np.array(list(gains.values())), config.curation
    )
    names = list(gains)
    chosen = {
        "data_ids": [names[index] for index in choice.indices],
        "gains": {name: round(gain, 4) if np.isfinite(gain) else None for name, gain in gains.items()},
        "report": choice.report,
        "seconds": round(time.perf_counter() - started, 1),
    }
    dump(out / SCORES, _score_rows(clips, found))
    write_json(out / CHOSEN, chosen)
    return chosen


def store_gains(
    align: AlignConfig,
    store: RolloutStore,
    codec: Path,
    corpus: Path,
    syncnet: Path,
    batch: int,
    processes: int,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(prompt -> gain by the rubric of `align`, clip -> its rewards) of a store."""
    weights = align.rubric.weights()
    found = score_store(store, list(weights), codec, corpus, syncnet, batch, processes, align.reward_options)
    values = {name: np.array([scores[name] for scores in found.values()]) for name in weights}
    return prompt_gains(values, [store.case(clip) for clip in found], weights), found


def prompt_gains(
    rewards: Mapping[str, np.ndarray], cases: Sequence[str], weights: Mapping[str, float]
) -> dict[str, float]:
    """Case -> weighted sum of the shortfalls of each reward [N], negated if lower is better.

    A reward that could score none of a case's clips (a voice without a reference) does not apply to it: the
    others' weighted mean stands for it, so that cases of both kinds compare. NaN where no reward applies.
    """
    lower = {name for name in rewards if name in CATALOG and CATALOG[name].lower_is_better}
    parts = {name: shortfall(-values if name in lower else values, cases) for name, values in rewards.items()}
    whole, gains = sum(weights[name] for name in parts), {}
    for case in dict.fromkeys(cases):
        known = {name: part[case] for name, part in parts.items() if not math.isnan(part[case])}
        share = sum(weights[name] for name in known)
        gains[case] = sum(weights[name] * gain for name, gain in known.items()) * (
            whole / share if known else math.nan
        )
    return gains


def _score_rows(store: RolloutStore, found: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    for clip in own_names(clips_of(store)):
        scores = {
            name: round(value, 6) if np.isfinite(value) else None
            for name, value in found[clip.clip_id].items()
        }
        yield {
            "data_id": clip.clip_id,
            "model": clip.model,
            "case_id": clip.case_id,
            "prompt": clip.prompt,
            "sha256": clip.sha256,
            "scores": scores,
            "parts": {},
        }
