"""Clip pairs for the simulated raters: within one model, or two models case by case."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.gsb.pairs import ClipRef
from finetune.gsb.simulated_raters import ClipPair, JudgeScores, SimulatedRatersConfig, VoteRow, vote
from pretrain.jsonl import dump
from pretrain.randomness import stable_hash


def votes_for_pairs(
    config: SimulatedRatersConfig, clips: Sequence[ClipRef], scores: JudgeScores, pairs_per_case: int
) -> tuple[list[VoteRow], list[ClipRef]]:
    """Votes between clips of one model, and those clips with their new names (for `write_clips`).

    `clips` of one prompt share their case_id; `scores` is by the clips' given names. No model is ours:
    ours_side is null.
    """
    named = own_names(clips)
    keys = [
        ((clip.model, clip.clip_id), (clip_before.model, clip_before.clip_id))
        for clip, clip_before in zip(named, clips, strict=True)
    ]
    renamed = {new: scores[old] for new, old in keys if old in scores}
    return vote(config, pairs_within(named, pairs_per_case, config.seed), renamed), named


def votes_before_after(
    config: SimulatedRatersConfig, after: Sequence[ClipRef], before: Sequence[ClipRef], scores: JudgeScores
) -> list[VoteRow]:
    """Votes between an aligned model (`ours`) and its base, on every case of both."""
    return vote(config, pairs_between(after, before), scores, ours=after[0].model)


def own_names(clips: Sequence[ClipRef]) -> list[ClipRef]:
    """Clips renamed MODEL#0, MODEL#1 ... within a case. ValueError for two models or a clip twice."""
    if len({clip.model for clip in clips}) > 1:
        raise ValueError(
            f"panel: clips of {len({clip.model for clip in clips})} models; pairs within a model are of one"
        )
    members: dict[str, list[str]] = {}
    for clip in clips:
        members.setdefault(clip.case_id, []).append(clip.clip_id)
    for case, ids in members.items():
        if len(set(ids)) < len(ids):
            raise ValueError(f"panel: case {case!r} has the same clip twice")
        ids.sort(key=lambda name: (len(name), name))  # k10 after k9
    return [
        replace(clip, model=f"{clip.model}#{members[clip.case_id].index(clip.clip_id)}") for clip in clips
    ]


def pairs_within(clips: Sequence[ClipRef], per_case: int, seed: int) -> list[ClipPair]:
    """Up to `per_case` random pairs of each case, clips used about equally. Raises ValueError for no pair."""
    if per_case < 1:
        raise ValueError(f"panel: at least 1 pair a case, got {per_case}")
    members: dict[str, list[ClipRef]] = {}
    for clip in clips:
        members.setdefault(clip.case_id, []).append(clip)
    pairs = []
    for case, found in members.items():
        possible = sorted(
            itertools.combinations(sorted(found, key=lambda clip: clip.model), 2),
            key=lambda two: stable_hash("within", seed, case, two[0].model, two[1].model),
        )
        used: Counter[str] = Counter()
        for _ in range(min(per_case, len(possible))):
            best = min(possible, key=lambda two: sorted((used[clip.model] for clip in two), reverse=True))
            possible.remove(best)
            used.update(clip.model for clip in best)
            pairs.append(ClipPair(*best))
    if not pairs:
        raise ValueError("panel: no case has two clips; give clips of one prompt the same case_id")
    return pairs


def pairs_between(first: Sequence[ClipRef], second: Sequence[ClipRef]) -> list[ClipPair]:
    """One pair per case of both sets, in the first's order. Raises ValueError for a case twice, or none."""
    others = {clip.case_id: clip for clip in second}
    for clips in (first, second):
        if doubled := [case for case, count in Counter(clip.case_id for clip in clips).items() if count > 1]:
            raise ValueError(
                f"panel: case {doubled[0]!r} has {clips[0].model!r} clips of its own to choose from; give "
                "one a case"
            )
    pairs = [ClipPair(clip, others[clip.case_id]) for clip in first if clip.case_id in others]
    if not pairs:
        raise ValueError("panel: the two sets of clips have no case in common")
    return pairs


def write_clips(path: Path, clips: Sequence[ClipRef]) -> None:
    """An index of clips that `nava gsb export --clips` reads, for clips that got names of their own."""
    dump(path, (_index_row(clip, path.parent) for clip in clips))


def _index_row(clip: ClipRef, folder: Path) -> VoteRow:
    video = Path(os.path.relpath(clip.video, folder)).as_posix() if clip.video else None
    row = {"data_id": clip.clip_id, "model": clip.model, "case_id": clip.case_id, "prompt": clip.prompt}
    known = {"video": video, "sha256": clip.sha256, "video_sha256": clip.video_sha256}
    return {**row, **{name: value for name, value in known.items() if value}}
