"""Training data of the arms, made once: prompt files, thirds of the prompts, preference pairs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.alignment.inputs import BASE, PROMPTS
from experiments.layout import Layout
from experiments.pipeline.curate_prompts import store_gains
from experiments.pipeline.votes import PAIRS, VotesConfig, vote_on_rollouts
from experiments.scoring.sets import ScoreConfig
from experiments.studies.harness import mark_of
from experiments.studies.objectives.arms import Arm, budget, store_sizes
from experiments.studies.objectives.config import ObjectivesConfig
from finetune.curation import curate, random_choice, text_features
from finetune.gsb.pairs import PreferencePair, read_pairs, write_pairs
from finetune.gsb.votes import AXES
from finetune.make_rollouts import RolloutsConfig, make_rollouts
from finetune.prompts import read_prompt_set, shuffled
from finetune.recipe import AlignConfig
from finetune.rollout_store import open_store
from pretrain.config import to_json
from pretrain.files import read_json, write_json
from pretrain.generation.config import GenerateConfig
from pretrain.jsonl import FieldError, dump, scan
from pretrain.prompt import PromptRow, read_prompts

MADE, GAINS, DECIDED = "made.json", "gains.json", "pairs_no_ties.jsonl"


@dataclass(frozen=True)
class Sections:
    """The sections of a recipe that the study uses."""

    objectives: ObjectivesConfig
    align: AlignConfig
    generate: GenerateConfig
    rollout: RolloutsConfig
    votes: VotesConfig
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True)
class Material:
    """Files below `folder`: prompts/, pilot-MARK/ and votes-MARK/.

    `inputs`: digests of everything they are made from.
    """

    sections: Sections
    layout: Layout
    inputs: Mapping[str, str]
    folder: Path

    @property
    def source(self) -> Path:
        return self.layout.prompts / PROMPTS

    @cached_property
    def rows(self) -> list[PromptRow]:
        """Training prompts of the recipe's alignment, of their most frequent length."""
        align = replace(self.sections.align, sequence=("nft",))
        ours = {row.data_id for row in read_prompt_set(self.source, align).train[0]}
        return [row for row in read_prompts(self.source) if row.data_id in ours]

    @cached_property
    def trained_on(self) -> list[Any]:
        """Everything that each alignment reads except the judge, for marks."""
        names = ("model", "codec", PROMPTS, "syncnet_reward")
        kept = {name: digest for name, digest in self.inputs.items() if name in names}
        return [kept, sorted(row.data_id for row in self.rows)]

    @cached_property
    def stored(self) -> tuple[int, int]:
        """(prompts, clips of each) that are voted on: exactly the budget."""
        return store_sizes(budget(self.sections.objectives, self.sections.align), len(self.rows))

    @cached_property
    def pilot_mark(self) -> str:
        sizes, names = to_json(self.sections.align), ("num_frames", "fps", "height", "width")
        rewarded = {name: sizes[name] for name in ("rubric", "reward_options", *names)}
        return mark_of(self.trained_on, to_json(self._pilot), rewarded)

    @cached_property
    def votes_mark(self) -> str:
        made = (to_json(self._store), to_json(self._votes), self.stored)
        return mark_of(self.trained_on, self.inputs["syncnet_judge"], *made)

    def prompts(self, arm: Arm) -> Path:
        """File of the arm's training prompts; creates what the selection needs.

        Makes what the choice needs.
        """
        indices: Sequence[int] = range(len(self.rows))
        if arm.prompts == "chosen":
            indices = self.chosen()
        elif arm.prompts != "all":
            indices = random_choice(len(self.rows), replace(self.sections.objectives.curation, seed=arm.seed))
        return self._written(arm.prompts, {self.rows[index].data_id for index in indices})

    def chosen(self) -> list[int]:
        """Indices of the curated third: diverse texts of low reward, as in the stage `curate_prompts`."""
        gains = self.pilot()["gains"]
        values = [np.nan if (gain := gains[row.data_id]) is None else gain for row in self.rows]
        texts = text_features([row.prompt.text for row in self.rows])
        return curate(texts, np.array(values), self.sections.objectives.curation).indices

    def pilot(self) -> dict[str, Any]:
        """Gains from a few clips of every training prompt.

        {"gains": {prompt: shortfall of its rewards or None}, "seconds": ...}
        """
        out = self.folder / f"pilot-{self.pilot_mark}" / GAINS
        if not out.is_file():
            started, store, layout = time.monotonic(), out.parent / "rollouts", self.layout
            self._roll_out(self._pilot, "all", self.rows, store)
            batch = self.sections.align.phases["nft"].rollout_batch
            processes = self.sections.objectives.recognizer_processes
            where = (layout.codec, layout.corpus, layout.syncnet)
            found, _ = store_gains(self._plain(), open_store(store), *where, batch, processes)
            gains = {str(name): None if np.isnan(gain) else gain for name, gain in found.items()}
            write_json(out, {"gains": gains, "seconds": round(time.monotonic() - started, 1)})
            shutil.rmtree(store, ignore_errors=True)
        return read_json(out, f"remove {out.parent}")

    @property
    def voted(self) -> Path:
        return self.folder / f"votes-{self.votes_mark}"

    def votes(self) -> dict[str, Any]:
        """Roll out and vote, unless cached.

        {"rollout", "vote": seconds, "summary", "pairs", "decided": numbers of pairs}
        """
        out, layout = self.voted, self.layout
        if not (out / MADE).is_file():
            started = time.monotonic()
            kept = shuffled(self.rows, self.sections.align.seed, "objectives")[: self.stored[0]]
            self._roll_out(self._store, "voted", kept, out / "rollouts")
            rolled = time.monotonic()
            where = (layout.codec, layout.corpus, layout.syncnet, out / "votes")
            summary = vote_on_rollouts(self._votes, out / "rollouts", *where)
            pairs = read_pairs(out / "votes" / PAIRS)
            left = [pair for pair in pairs if is_decided(pair)]
            write_pairs(out / "votes" / DECIDED, left)
            seconds = {"rollout": round(rolled - started, 1), "vote": round(time.monotonic() - rolled, 1)}
            write_json(out / MADE, {**seconds, "summary": summary, "pairs": len(pairs), "decided": len(left)})
        return read_json(out / MADE, f"remove {out}")

    def pairs(self, ties: bool) -> tuple[Path, Path, int]:
        """(pairs, the store of their clips, number of pairs), with or without undecided ones."""
        made = self.votes()
        file, count = (PAIRS, made["pairs"]) if ties else (DECIDED, made["decided"])
        return self.voted / "votes" / file, self.voted / "rollouts", count

    def _roll_out(self, config: RolloutsConfig, name: str, rows: Sequence[PromptRow], out: Path) -> None:
        prompts = self._written(name, {row.data_id for row in rows})
        model, codec = self.layout.model(BASE), self.layout.codec
        make_rollouts(config, self._plain(), model, codec, prompts, out)

    @property
    def _pilot(self) -> RolloutsConfig:
        """Rollouts as nft's before its first step."""
        clips, sampler = self.sections.objectives.pilot_clips, self.sections.align.phases["nft"].sampler
        return replace(self.sections.rollout, clips_per_prompt=clips, sampler=sampler)

    @property
    def _store(self) -> RolloutsConfig:
        return replace(self.sections.rollout, clips_per_prompt=self.stored[1])

    @property
    def _votes(self) -> VotesConfig:
        """Enough pairs that every clip is voted on."""
        votes = self.sections.votes
        return replace(votes, pairs_per_case=max(votes.pairs_per_case, self.stored[1] // 2))

    def _plain(self) -> AlignConfig:
        """Sizes and rubric, without held-out prompts."""
        align = self.sections.align
        return replace(align, sequence=("gsb_dpo",), stop=replace(align.stop, prompts=0, patience=0))

    def _written(self, name: str, kept: Collection[str]) -> Path:
        out = self.folder / "prompts" / f"{name}.jsonl"
        write_prompts(self.source, kept, out)
        return out


def write_prompts(source: Path, kept: Collection[str], out: Path) -> None:
    """Write the rows of `source` with these ids, in order, with file paths relative to the new location."""
    rows = []
    for line, row in scan(source):
        if isinstance(row, FieldError):
            raise ValueError(row.at(source))
        row = {**row, "data_id": row.get("data_id", f"{source.stem}-{line:05d}")}
        if row["data_id"] in kept:
            voices = [
                os.path.relpath(source.parent / voice, out.parent) if voice else voice
                for voice in row.get("spk_wavs") or []
            ]
            rows.append({**row, "spk_wavs": voices})
    dump(out, rows)


def is_decided(pair: PreferencePair) -> bool:
    """True if an axis has a winner: each has a term of its own in gsb_dpo."""
    return any(pair.label(axis) for axis in AXES)
