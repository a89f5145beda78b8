"""Preference pairs of a file (`nava gsb export`) with the latents of their clips, as batches of gsb_dpo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.gsb.pairs import PreferencePair, read_pairs
from finetune.objectives.gsb_dpo import TieShares, tie_shares
from finetune.recipe import GsbDpoPhase
from finetune.rollout_store import RolloutStore
from finetune.types import NO_LABEL, PreferencePairs
from pretrain.randomness import generator_for

# which vote is about which margin (alignment.md 2.6); of several about the same one, the first that was asked
AXES = {"labels_video": ("picture",), "labels_audio": ("voice",), "labels_total": ("overall", "sync")}


@dataclass(frozen=True)
class PairSource:
    """Pairs whose clips are all in the store."""

    pairs: Sequence[PreferencePair]
    store: RolloutStore
    shares: TieShares

    def of_round(
        self, phase: GsbDpoPhase, seed: int, index: int, rank: int, world_size: int
    ) -> PreferencePairs:
        """This rank's equal part of each optimizer step of round `index`. The pairs are walked through in an
        order of their own for each pass; what no longer fills a round is left out of it."""
        turn, place = divmod(index, len(self.pairs) // phase.pairs_per_round)
        order = torch.randperm(len(self.pairs), generator=generator_for(seed, "pairs", turn))
        chosen = order[place * phase.pairs_per_round : (place + 1) * phase.pairs_per_round]
        steps = chosen.view(phase.steps_per_epoch, world_size, -1)
        return self.batch([self.pairs[number] for number in steps[:, rank].flatten().tolist()])

    def batch(self, pairs: Sequence[PreferencePair]) -> PreferencePairs:
        """The pairs with their clips."""
        labels = {
            name: torch.tensor([_label(pair, axes) for pair in pairs], dtype=torch.int8)
            for name, axes in AXES.items()
        }
        first, second = (
            self.store.rollout([getattr(pair, side).clip_id for pair in pairs])
            for side in ("first", "second")
        )
        return PreferencePairs(first, second, **labels)


def open_pairs(path: Path, store: RolloutStore, phase: GsbDpoPhase) -> PairSource:
    """Raises ValueError or FileNotFoundError in one line: a clip the store does not have, fewer pairs than a
    round takes, only ties."""
    pairs = read_pairs(path)
    for pair in pairs:
        for clip in (pair.first, pair.second):
            if clip.clip_id not in store.places:
                raise ValueError(
                    f"{path}: clip {clip.clip_id!r} is not in {store.folder}; give the rollouts that were "
                    "voted on"
                )
    if len(pairs) < phase.pairs_per_round:
        raise ValueError(
            f"{path}: {len(pairs)} pairs, but a round takes {phase.pairs_per_round}; set "
            "gsb_dpo.pairs_per_round"
        )
    if pairs[0].first.case_id and any(
        store.case(p.first.clip_id) != store.case(p.second.clip_id) for p in pairs
    ):
        raise ValueError(f"{path}: a pair's clips answer different prompts; export the votes again")
    source = PairSource(pairs, store, TieShares())
    try:
        return PairSource(pairs, store, tie_shares(source.batch(pairs)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _label(pair: PreferencePair, axes: Sequence[str]) -> int:
    found = [label for axis in axes if (label := pair.label(axis)) is not None]
    return found[0] if found else NO_LABEL
