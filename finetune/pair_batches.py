"""Batches of preference pairs (`nava gsb export`) with the latents of their clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.gsb.pairs import PreferencePair, read_pairs
from finetune.rollout_store import RolloutStore
from finetune.types import NO_LABEL, PreferencePairs
from pretrain.randomness import generator_for

# vote axis -> margin (alignment.md 2.6); of several axes of one margin, the first that was voted on counts
AXES = {"labels_video": ("picture",), "labels_audio": ("voice",), "labels_total": ("overall", "sync")}


@dataclass(frozen=True)
class PairSource:
    """Pairs whose clips are all in the store."""

    pairs: Sequence[PreferencePair]
    store: RolloutStore

    def of_round(
        self, pairs_per_round: int, steps: int, seed: int, index: int, rank: int, world_size: int
    ) -> PreferencePairs:
        """This rank's equal part of each of `steps` optimizer steps of round `index`.

        Each pass uses its own permutation of the pairs; the remainder that does not fill a round is dropped.
        """
        epoch, place = divmod(index, len(self.pairs) // pairs_per_round)
        order = torch.randperm(len(self.pairs), generator=generator_for(seed, "pairs", epoch))
        drawn = order[place * pairs_per_round : (place + 1) * pairs_per_round]
        by_rank = drawn.view(steps, world_size, -1)
        return self.batch([self.pairs[number] for number in by_rank[:, rank].flatten().tolist()])

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


def open_pairs(path: Path, store: RolloutStore, pairs_per_round: int) -> PairSource:
    """Open the pairs of a file.

    Raises ValueError or FileNotFoundError in one line: a clip that is not in the store, fewer pairs than a
    round uses.
    """
    pairs = read_pairs(path)
    for pair in pairs:
        for clip in (pair.first, pair.second):
            if clip.clip_id not in store.places:
                raise ValueError(
                    f"{path}: clip {clip.clip_id!r} is not in {store.folder}; give the rollouts that were "
                    "voted on"
                )
            if clip.sha256 != store.places[clip.clip_id]["sha256"]:
                raise ValueError(
                    f"{path}: clip {clip.clip_id!r} is another one in {store.folder}; give the rollouts that "
                    "were voted on"
                )
    if len(pairs) < pairs_per_round:
        raise ValueError(
            f"{path}: {len(pairs)} pairs, but a round takes {pairs_per_round}; set gsb_dpo.pairs_per_round"
        )
    if pairs[0].first.case_id and any(
        store.case(p.first.clip_id) != store.case(p.second.clip_id) for p in pairs
    ):
        raise ValueError(f"{path}: a pair's clips answer different prompts; export the votes again")
    return PairSource(pairs, store)


def _label(pair: PreferencePair, axes: Sequence[str]) -> int:
    found = [label for axis in axes if (label := pair.label(axis)) is not None]
    return found[0] if found else NO_LABEL
