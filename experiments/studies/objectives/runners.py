"""The heavy work of the study as plain callables, so that its order, its arithmetic and its resuming can be
tried without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.layout import Layout
from experiments.pipeline.votes import VotesConfig, vote_on_rollouts
from experiments.scoring.latents import score_store
from experiments.studies.objectives.scores import score_clips
from finetune.align_run import AlignRun
from finetune.launch import align_model
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.recipe import AlignConfig
from finetune.rollout_store import open_store
from pretrain.generate import GenerateConfig, generate
from pretrain.launch.launch import StageResult

Rewards = tuple[Sequence[str], Mapping[str, np.ndarray]]  # prompt of each clip; reward -> value of each clip


def rewards_of_store(align: AlignConfig, layout: Layout, store: Path, processes: int) -> Rewards:
    """The rubric's rewards of every clip of a store, NaN where there is none."""
    names, opened = list(align.rubric.weights()), open_store(store)
    where = (layout.codec, layout.corpus, layout.syncnet)
    found = score_store(
        opened, names, *where, align.phases["nft"].rollout_batch, processes, align.reward_options
    )
    values = {name: np.array([scores[name] for scores in found.values()]) for name in names}
    return [opened.case(clip) for clip in found], values


@dataclass(frozen=True)
class Runners:
    """What the study calls; tests put something light in their place."""

    roll_out: Callable[[RolloutsConfig, AlignConfig, Path, Path, Path, Path], dict[str, Any]] = make_rollouts
    vote: Callable[[VotesConfig, Path, Path, Path, Path, Path], dict[str, Any]] = vote_on_rollouts
    reward: Callable[[AlignConfig, Layout, Path, int], Rewards] = rewards_of_store
    align: Callable[[AlignRun, int], StageResult] = align_model
    generate: Callable[[GenerateConfig, Path, Path, Path, Path, int | None], dict[str, Any]] = generate
    score: Callable[[Path, Sequence[str], Layout, Mapping[str, float], int, Path], None] = score_clips
