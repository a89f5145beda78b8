"""The heavy work of the study as plain callables, so that its order, its arithmetic and its resuming can be tried without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.layout import Layout
from experiments.objectives_study.scores import score_clips
from experiments.votes import VotesConfig, vote_on_rollouts
from finetune.align_run import AlignRun
from finetune.launch import align_model
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.recipe import AlignConfig
from pretrain.generate import GenerateConfig, generate
from pretrain.launch import StageResult

Rewards = tuple[Sequence[str], Mapping[str, np.ndarray]]  # prompt of each clip; reward -> value of each clip, higher is better


def rewards_of_store(align: AlignConfig, layout: Layout, store: Path, prompts: Path) -> Rewards:
    """The rubric's rewards of every clip of a store, NaN where there is none."""
    from experiments.align_scorer import AlignScorer, scorer_options
    from finetune.rollout_store import open_store
    from pretrain.prompt import read_prompts

    opened = open_store(store)
    rows = {row.data_id: row for row in read_prompts(prompts)}
    names = list(opened.places)
    scorer = AlignScorer(**scorer_options(align, layout.corpus, layout.codec, layout.syncnet))
    found: dict[str, list[np.ndarray]] = {}
    try:
        for start in range(0, len(names), align.nft.rollout_batch):
            part = names[start : start + align.nft.rollout_batch]
            latents = opened.rollout(part)
            scores = scorer.score(latents.video, latents.audio, [rows[opened.case(name)] for name in part])
            for reward, values in scores.values.items():
                found.setdefault(reward, []).append(values.numpy())
    finally:
        scorer.close()
    return [opened.case(name) for name in names], {reward: np.concatenate(values) for reward, values in found.items()}


@dataclass(frozen=True)
class Runners:
    """What the study calls; tests put something light in their place."""

    roll_out: Callable[[RolloutsConfig, AlignConfig, Path, Path, Path, Path], dict[str, Any]] = make_rollouts
    vote: Callable[[VotesConfig, Path, Path, Path, Path, Path], dict[str, Any]] = vote_on_rollouts
    reward: Callable[[AlignConfig, Layout, Path, Path], Rewards] = rewards_of_store
    align: Callable[[AlignRun, int], StageResult] = align_model
    generate: Callable[[GenerateConfig, Path, Path, Path, Path, int | None], dict[str, Any]] = generate
    score: Callable[[Path, Sequence[str], Layout, Mapping[str, float], int, Path], None] = score_clips
