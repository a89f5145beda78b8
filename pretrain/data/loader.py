"""The training data of one stage: an exactly resumable stream of micro-batches that does not depend on the number of ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pretrain.config import nearest
from pretrain.data.collate import Batch, SampleLike, collate, num_tokens
from pretrain.data.store import LatentStore
from pretrain.randomness import generator_for, stable_hash
from pretrain.schedule import StageConfig, task_of_step
from pretrain.tasks import TASKS
from pretrain.types import Task

IN_MEMORY_BYTES = 1 << 30


class Samples(Protocol):
    """What a latent store and a list of samples have in common."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> SampleLike: ...


@dataclass(frozen=True)
class Slice:
    """Which part of the global batch this rank takes, in micro-batches of `local` samples."""

    rank: int = 0
    world_size: int = 1
    local_batch_size: int = 1


class SampleSet:
    """A data set in buckets of one latent size each, so that a step needs no padding.

    `shapes` (one mapping per sample: "video" -> shape, "audio" -> shape) spares reading every sample to learn its size.
    """

    def __init__(
        self, name: str, samples: Samples, mix_lengths: bool = False, shapes: Sequence[Mapping[str, Sequence[int]]] | None = None
    ) -> None:
        if not len(samples):
            raise ValueError(f"data set {name!r} is empty; encode it first or take it out of the stage")
        self.name, self.samples = name, samples
        self.buckets: dict[str, list[int]] = {}
        for index in range(len(samples)):
            key = "all" if mix_lengths else _size_key(shapes[index] if shapes else _shapes(samples[index]))
            self.buckets.setdefault(key, []).append(index)

    def bucket(self, uniform: float) -> str:
        """A bucket, by its share of the samples."""
        target = uniform * len(self.samples)
        for key in sorted(self.buckets):
            target -= len(self.buckets[key])
            if target < 0:
                return key
        return max(self.buckets)


class StageLoader:
    """Iterates (batch dict, labels) micro-batches for one rank, forever.

    A step's task, set, bucket and samples are pure functions of (seed, stage, step, how far each bucket was read), so every rank
    knows the whole global batch and takes its slice. Samples of a bucket come without replacement, in an order drawn anew every epoch.
    Raises ValueError where the stage names an unknown set or the batch does not split over the ranks.
    """

    def __init__(self, stage: StageConfig, sets: Mapping[str, SampleSet], seed: int, global_batch_size: int, part: Slice) -> None:
        if global_batch_size % (part.world_size * part.local_batch_size):
            raise ValueError(
                f"global_batch_size {global_batch_size} must be a multiple of ranks x local_batch_size = "
                f"{part.world_size} x {part.local_batch_size}"
            )
        for name, weight in (*stage.sets.items(), *stage.audio_sets.items()):
            if weight > 0 and name not in sets:
                raise ValueError(f"{stage.name}.sets: unknown data set {name!r}; {nearest(name, sets)}")
        self.stage, self.sets, self.part = stage, sets, part
        self.seed, self.global_batch_size = stable_hash(seed, stage.name), global_batch_size
        self.base_seed = seed
        self.step = 0
        self.read: dict[str, int] = {}  # samples taken so far, per "set/bucket"
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        while True:
            self.step += 1
            yield from self._micro_batches(*self._global_batch(self.step))

    def state_dict(self) -> dict[str, Any]:
        """Position, exact between steps; one string, because DCP only loads keys that are there before loading."""
        return {"position": json.dumps({"step": self.step, "read": self.read}, sort_keys=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        position = json.loads(state["position"])
        self.step, self.read = position["step"], position["read"]

    def _global_batch(self, step: int) -> tuple[Task, SampleSet, list[tuple[int, int]]]:
        task, set_name = task_of_step(self.base_seed, self.stage, step)
        source = self.sets[set_name]
        key = source.bucket(stable_hash(self.seed, step, "bucket") / 2**63)
        size = self.global_batch_size * (self.stage.audio_only_batch_factor if not TASKS[task].video else 1)
        return task, source, self._take(source, key, size)

    def _take(self, source: SampleSet, key: str, count: int) -> list[tuple[int, int]]:
        """The bucket's next (sample index, epoch) pairs."""
        where, members = f"{source.name}/{key}", source.buckets[key]
        start = self.read.get(where, 0)
        self.read[where] = start + count
        return [(members[self._order(where, position // len(members), len(members))[position % len(members)]], position // len(members))
                for position in range(start, start + count)]  # fmt: skip

    def _order(self, where: str, epoch: int, size: int) -> list[int]:
        if where not in self._orders or self._orders[where][0] != epoch:
            order = torch.randperm(size, generator=generator_for(self.seed, where, epoch)).tolist()
            self._orders[where] = (epoch, order)
        return self._orders[where][1]

    def _micro_batches(self, task: Task, source: SampleSet, taken: list[tuple[int, int]]) -> Iterator[tuple[Batch, Tensor]]:
        factor = len(taken) // self.global_batch_size
        local = self.part.local_batch_size * factor
        for start in range(self.part.rank * local, len(taken), self.part.world_size * local):
            rows = taken[start : start + local]
            batch = collate([source.samples[index] for index, _ in rows], [epoch for _, epoch in rows], task)
            # torchtitan counts tokens by the size of the labels; an expanded zero costs no memory
            yield batch, torch.zeros(1, dtype=torch.int8).expand(num_tokens(batch))


def check_sets(latents: Path, stage: StageConfig) -> list[str]:
    """Names of the sets the stage draws from. Raises FileNotFoundError for one that is not encoded."""
    names = sorted({name for weights in (stage.sets, stage.audio_sets) for name, weight in weights.items() if weight > 0})
    for name in names:
        if not (latents / name / "manifest.json").is_file():
            present = [path.parent.name for path in latents.glob("*/manifest.json")]
            raise FileNotFoundError(f"{latents / name}: no encoded data set {name!r}; {nearest(name, present)}; or run `nava encode`")
    return names


def open_sets(latents: Path, stage: StageConfig, codec_id: str | None = None, mix_lengths: bool = False) -> dict[str, SampleSet]:
    """The stage's encoded sets under `latents`; small ones are held in memory. FileNotFoundError or ValueError in one line."""
    return {name: _open_set(latents / name, codec_id, mix_lengths) for name in check_sets(latents, stage)}


def _open_set(folder: Path, codec_id: str | None, mix_lengths: bool) -> SampleSet:
    store = LatentStore(folder, codec_id=codec_id)
    size = sum(shard["bytes"] for shard in store.manifest["shards"].values())
    samples = list(store) if size <= IN_MEMORY_BYTES else store
    return SampleSet(folder.name, samples, mix_lengths, [row["shapes"] for row in store.index])


def _shapes(sample: SampleLike) -> dict[str, Sequence[int]]:
    return {name: value.shape for name in ("video", "audio") if (value := getattr(sample, name)) is not None}


def _size_key(shapes: Mapping[str, Sequence[int]]) -> str:
    parts = ["x".join(map(str, shapes[name][1:])) if name in shapes else "none" for name in ("video", "audio")]
    return "+".join(parts)
