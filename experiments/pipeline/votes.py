"""Stage `votes`: votes of a survey, or of simulated raters, become preference pairs."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.job import StageJob
from experiments.layout import PAIRS, VOTED_CLIPS
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.latents import score_store
from finetune.curation import CurationConfig, curate, text_features, vote_margin
from finetune.gsb.pairs import PreferencePair, pair_up, tie_shares, write_pairs
from finetune.gsb.raters import check_raters, kept_votes
from finetune.gsb.simulated_pairs import votes_for_pairs, write_clips
from finetune.gsb.simulated_raters import SimulatedRatersConfig, check_apart
from finetune.gsb.store_clips import PRETRAINED, clips_of
from finetune.gsb.votes import read_votes
from finetune.rollout_store import open_store
from pretrain.files import write_json
from pretrain.jsonl import dump

VOTES, CLIPS, SUMMARY = "votes.jsonl", "clips.jsonl", "summary.json"


@dataclass(frozen=True, kw_only=True)
class SurveyVotesConfig:
    """A survey of `nava gsb serve` in place of the simulated raters.

    place: its --votes; name: its --survey; clips: the rollout store that was voted on. The stage keeps what
    had been voted when it ran. Raises ValueError for a place without clips, and one with a password.
    """

    place: str = ""  # "" = simulated raters
    name: str = "survey"
    clips: str = ""

    def __post_init__(self) -> None:
        if bool(self.place) != bool(self.clips):
            raise ValueError(f"votes.survey: place and clips belong together, got {self}")
        if re.search(r"://[^/@]*:[^/@]*@", self.place):
            raise ValueError(
                "votes.survey.place: has a password, which runs would show; leave it out and set PGPASSWORD"
            )


@dataclass(frozen=True, kw_only=True)
class VotesConfig:
    """Raters, candidates, and which pairs are kept. Raises ValueError for numbers out of range."""

    survey: SurveyVotesConfig = field(default_factory=SurveyVotesConfig)
    panel: SimulatedRatersConfig = field(default_factory=SimulatedRatersConfig)
    pairs_per_case: int = 3
    # of pairs: diverse prompts, clear votes
    curation: CurationConfig = field(default_factory=lambda: CurationConfig(share=1.0))
    batch: int = 64  # clips that are decoded at once
    num_processes: int = 2  # of the recogniser

    def __post_init__(self) -> None:
        if self.pairs_per_case < 1 or self.batch < 1 or self.num_processes < 1:
            raise ValueError(f"votes: pairs_per_case, batch and num_processes must be at least 1, got {self}")


def check_inputs(job: StageJob) -> None:
    """Raises FileNotFoundError or ValueError where simulated raters have no rollouts to vote on."""
    if not job.recipe.votes.survey.place:
        open_store(job.layout.rollouts)


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout, config = job.layout, job.recipe.votes
    survey = config.survey
    if survey.place:
        from experiments.pipeline.survey_votes import export_survey

        tracker.set_tags(export_survey(survey.place, survey.name, Path(survey.clips), layout.votes))
        tracker.log_artifact(str(layout.votes / "votes.html"))
    else:
        check_apart(config.panel, job.recipe.align.rubric.weights())
        if (layout.votes / VOTED_CLIPS).is_dir():  # of a survey that the recipe no longer names
            shutil.rmtree(layout.votes / VOTED_CLIPS)
        vote_on_rollouts(config, layout.rollouts, layout.codec, layout.corpus, layout.syncnet, layout.votes)
        tracker.set_tags({"nava.simulated": "true"})
    for name in (VOTES, PAIRS, SUMMARY):
        tracker.log_artifact(str(layout.votes / name))


def vote_on_rollouts(
    config: VotesConfig, store: Path, codec: Path, corpus: Path, syncnet: Path, out: Path
) -> dict[str, Any]:
    """Write `out`/votes.jsonl, clips.jsonl, pairs.jsonl and summary.json; returns the summary.

    votes.jsonl has the public format with every row marked simulated. `codec`, `corpus` and `syncnet` are
    outputs of those stages. Raises FileNotFoundError or ValueError in one line.
    """
    started = time.perf_counter()
    rollouts = open_store(store)
    judges = [feature.name for feature in config.panel.features]
    found = score_store(rollouts, judges, codec, corpus, syncnet, config.batch, config.num_processes)
    named = clips_of(rollouts)
    rows, renamed = votes_for_pairs(
        config.panel,
        named,
        {(PRETRAINED, clip): values for clip, values in found.items()},
        config.pairs_per_case,
    )
    out.mkdir(parents=True, exist_ok=True)
    dump(out / VOTES, rows)
    write_clips(out / CLIPS, renamed)
    votes = read_votes(out / VOTES).votes
    pairs = pair_up(kept_votes(votes, check_raters(votes)), renamed, out / VOTES)
    kept, report = curated(config.curation, pairs)
    write_pairs(out / PAIRS, kept)
    means = {
        feature.name: _mean([values[feature.name] for values in found.values()])
        for feature in config.panel.features
    }
    summary = {
        "simulated": True,
        "clips": len(named),
        "votes": len(votes),
        "raters": config.panel.raters,
        "pairs": len(kept),
        "same_share": tie_shares(kept),
        "judges": means,
        "curation": report,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(out / SUMMARY, summary)
    return summary


def curated(
    config: CurationConfig, pairs: Sequence[PreferencePair]
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """The kept pairs, in order, and a comparison with random selections; all pairs if the share is 1."""
    if config.budget(len(pairs)) >= len(pairs):
        return list(pairs), {"all": len(pairs), "chosen": len(pairs)}
    axis = "overall" if all("overall" in pair.counts for pair in pairs) else next(iter(pairs[0].counts))
    gains = vote_margin(np.array([pair.counts.get(axis, (0, 0, 0)) for pair in pairs]))
    choice = curate(text_features([pair.first.prompt for pair in pairs]), gains, config)
    return [pairs[index] for index in choice.indices], choice.report


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return round(sum(known) / len(known), 4) if known else None
