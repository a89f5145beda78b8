"""Batches of preference pairs (`nava gsb export`) with the latents of their clips."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.gsb.pairs import PreferencePair, read_pairs
from finetune.gsb.votes import AXES
from finetune.prompts import kind_of_round
from finetune.rollout_store import RolloutStore, StoredKind
from finetune.types import NO_LABEL, PreferencePairs
from pretrain.randomness import generator_for


@dataclass(frozen=True)
class PairSource:
    """Pairs whose clips are all in the store."""

    pairs: Sequence[PreferencePair]
    store: RolloutStore

    def of_round(
        self, pairs_per_round: int, steps: int, seed: int, index: int, rank: int, world_size: int
    ) -> PreferencePairs:
        """This rank's equal part of each of `steps` optimizer steps of round `index`.

        A round is of pairs of one kind of clips, drawn as `prompts_of_round` draws one of prompts. Each pass
        uses its own permutation of the pairs; the remainder that does not fill a round is dropped.
        """
        kinds = self.kinds(pairs_per_round)
        kind, visit = kind_of_round([len(some) for some in kinds], seed, "pairs of a kind", index)
        pairs = kinds[kind]
        epoch, place = divmod(visit, len(pairs) // pairs_per_round)
        order = torch.randperm(len(pairs), generator=generator_for(seed, "pairs", epoch))
        drawn = order[place * pairs_per_round : (place + 1) * pairs_per_round]
        by_rank = drawn.view(steps, world_size, -1)
        return self.batch([pairs[number] for number in by_rank[:, rank].flatten().tolist()])

    def kinds(self, at_least: int = 1) -> list[list[PreferencePair]]:
        """Pairs by the kind of their clips, of kinds with `at_least` pairs, the longest list first."""
        found: dict[StoredKind, list[PreferencePair]] = {}
        for pair in self.pairs:
            found.setdefault(self.store.kind(pair.first.clip_id), []).append(pair)
        lists = [some for some in found.values() if len(some) >= at_least]
        return sorted(lists, key=len, reverse=True)

    def batch(self, pairs: Sequence[PreferencePair]) -> PreferencePairs:
        """The pairs, of one kind of clips, with their clips and the label of each axis."""
        labels = torch.tensor([[_label(pair, axis) for axis in AXES] for pair in pairs], dtype=torch.int8)
        first, second = (
            self.store.rollout([getattr(pair, side).clip_id for pair in pairs])
            for side in ("first", "second")
        )
        return PreferencePairs(first, second, labels)


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
    if pairs[0].first.case_id and any(
        store.case(p.first.clip_id) != store.case(p.second.clip_id) for p in pairs
    ):
        raise ValueError(f"{path}: a pair's clips answer different prompts; export the votes again")
    source = PairSource(pairs, store)
    kinds = source.kinds()
    of_one_kind = " of one kind of clips" if len(kinds) > 1 else ""
    if (most := len(kinds[0])) < pairs_per_round:
        raise ValueError(
            f"{path}: {most} pairs{of_one_kind}, but a round takes {pairs_per_round}; set "
            "gsb_dpo.pairs_per_round"
        )
    if unused := sum(len(some) for some in kinds if len(some) < pairs_per_round):
        print(
            f"warning: {path}: {unused} pairs are of kinds of clips (length, size, first frame) with fewer "
            f"pairs than a round takes ({pairs_per_round}) and are left out",
            file=sys.stderr,
            flush=True,
        )
    return source


def _label(pair: PreferencePair, axis: str) -> int:
    label = pair.label(axis)
    return NO_LABEL if label is None else label
