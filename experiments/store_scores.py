"""Clips of a rollout store, decoded batch by batch and scored by rewards or judges of the catalog."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evaluate_clips import clip_of
from experiments.reward_options import reward_options
from finetune.rollout_store import RolloutStore
from pretrain.codecs.base import load_codecs
from pretrain.progress import track
from pretrain.prompt import parse
from rewards.catalog import open_rewards
from rewards.types import Clip, Score


def score_store(
    store: RolloutStore,
    features: Sequence[str],
    codec: Path,
    corpus: Path,
    syncnet: Path,
    batch: int,
    num_processes: int,
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, dict[str, float]]:
    """Clip -> value of each feature (a reward, or `reward.part`), NaN where it could not be scored.

    `codec`, `corpus` and `syncnet` are outputs of those stages; batch: clips decoded at once; given: options of rewards. Raises
    ValueError for another codec's latents and whatever opening the rewards raises.
    """
    names = list(dict.fromkeys(feature.partition(".")[0] for feature in features))
    found: dict[str, dict[str, float]] = {}
    with open_rewards(names, reward_options(names, corpus, syncnet, num_processes=num_processes, given=given)) as scorers:
        batches = -(-len(store.places) // batch)
        for clips in track(_decoded(store, codec, batch), batches, f"rollouts scored by {', '.join(names)} (batches)"):
            scores = {name: scorer.score(clips) for name, scorer in zip(names, scorers, strict=True)}
            for place, clip in enumerate(clips):
                found[clip.name] = {feature: _value({name: scores[name][place] for name in names}, feature) for feature in features}
    return found


def _decoded(store: RolloutStore, codec: Path, batch: int) -> Iterator[list[Clip]]:
    codecs = load_codecs(codec)
    store.check_codec(codecs, codec)
    names = list(store.places)
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        latents = store.rollout(part)
        frames, sounds = codecs.video.decode(latents.video).numpy(), codecs.audio.decode(latents.audio).numpy()
        yield [_clip(name, store.places[name], *media) for name, media in zip(part, zip(frames, sounds, strict=True), strict=True)]


def _clip(name: str, row: dict[str, Any], frames: Any, sound: Any) -> Clip:
    references = [Path(path) if path else None for path in row["reference_paths"]]
    return clip_of(frames, sound, parse(row["prompt"]), row["meta"], references, name)


def _value(scores: dict[str, Score], feature: str) -> float:
    name, _, part = feature.partition(".")
    return math.nan if scores[name].reason else scores[name].parts[part] if part else scores[name].value
