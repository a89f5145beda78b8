"""A data set in buckets of one latent size each, and the order its samples come in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pretrain.config import nearest
from pretrain.data.stream.collate import SampleLike
from pretrain.data.stream.index import LatentIndex, size_key
from pretrain.data.stream.order import Order, WindowedOrder, full_order
from pretrain.data.stream.shard_cache import ShardCache
from pretrain.data.stream.store import LatentStore
from pretrain.model.context_parallel import check_split
from pretrain.schedule import StageConfig
from pretrain.storage import is_file, list_folder, place

IN_MEMORY_BYTES = 1 << 30
SHUFFLE_SHARDS = 16
NO_PLACES: Mapping[str, str] = {}  # set -> folder or URL of a set that is elsewhere


class Samples(Protocol):
    """What a latent store and a list of samples have in common."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> SampleLike: ...


class SampleSet:
    """Samples and, for each bucket, the numbers of its members (ascending), so that a step needs no padding.

    shard_starts: for each bucket where the members of each shard begin (`WindowedOrder`), for a set that is
    read shard by shard; a set without is permuted as a whole. Members take 4 bytes each.
    """

    def __init__(
        self,
        name: str,
        samples: Samples,
        mix_lengths: bool = False,
        buckets: Mapping[str, np.ndarray] | None = None,
        shard_starts: Mapping[str, np.ndarray] | None = None,
        shuffle_shards: int = SHUFFLE_SHARDS,
    ) -> None:
        if not len(samples):
            raise ValueError(f"data set {name!r} is empty; encode it first or take it out of the stage")
        self.name, self.samples, self.shuffle_shards = name, samples, shuffle_shards
        self.buckets = buckets if buckets is not None else _buckets_of(samples, mix_lengths)
        self.shard_starts = shard_starts or {}

    @property
    def in_memory(self) -> bool:
        return isinstance(self.samples, list)

    @property
    def by_shards(self) -> bool:
        """Whether samples of one shard should be read together."""
        return bool(self.shard_starts)

    def bucket(self, uniform: float) -> str:
        """A bucket, by its share of the samples."""
        target = uniform * len(self.samples)
        for key in sorted(self.buckets):
            target -= len(self.buckets[key])
            if target < 0:
                return key
        return max(self.buckets)

    def order(self, key: str, *drawn_from: object) -> Order:
        """A permutation of a bucket's members."""
        if key in self.shard_starts:
            return WindowedOrder(self.shard_starts[key], self.shuffle_shards, *drawn_from)
        return full_order(len(self.buckets[key]), *drawn_from)


def folder_of(latents: Path, name: str, places: Mapping[str, str] = NO_PLACES) -> Path:
    """A set's folder: the place given for it, else below `latents`."""
    return place(places[name]) if name in places else latents / name


def check_sets(latents: Path, stage: StageConfig, places: Mapping[str, str] = NO_PLACES) -> list[str]:
    """Names of the sets the stage draws from. Raises FileNotFoundError for one that is not encoded."""
    names = sorted(
        {name for weights in (stage.sets, stage.audio_sets) for name, weight in weights.items() if weight > 0}
    )
    for name in names:
        folder = folder_of(latents, name, places)
        if not is_file(folder / "manifest.json"):
            present = [path.name for path in list_folder(latents) if is_file(path / "manifest.json")]
            raise FileNotFoundError(
                f"{folder}: no encoded data set {name!r}; {nearest(name, present)}; or run `nava encode`"
            )
    return names


def open_sets(
    latents: Path,
    stage: StageConfig,
    codec_id: str | None = None,
    mix_lengths: bool = False,
    *,
    shuffle_shards: int = SHUFFLE_SHARDS,
    cache: ShardCache | None = None,
    places: Mapping[str, str] = NO_PLACES,
) -> dict[str, SampleSet]:
    """The stage's encoded sets under `latents` (path or URL). Raises one-line FileNotFoundError, ValueError.

    A set of up to 1 GiB is held in memory and permuted as a whole; a larger one is read from its shards as it
    is used, and shuffled within windows of `shuffle_shards` shards (0 = permuted as a whole: for fast disks).
    """
    return {
        name: open_set(
            folder_of(latents, name, places), codec_id, mix_lengths, shuffle_shards, cache, name=name
        )
        for name in check_sets(latents, stage, places)
    }


def open_set(
    folder: Path,
    codec_id: str | None = None,
    mix_lengths: bool = False,
    shuffle_shards: int = SHUFFLE_SHARDS,
    cache: ShardCache | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    name: str = "",
) -> SampleSet:
    """One encoded set, called as its folder unless named."""
    name = name or folder.name
    store = LatentStore(folder, codec_id=codec_id, cache=cache)
    buckets, starts = buckets_of_index(store.index, mix_lengths)
    if store.num_bytes <= in_memory_bytes:
        return SampleSet(name, list(store), mix_lengths, buckets)
    return SampleSet(name, store, mix_lengths, buckets, starts if shuffle_shards else None, shuffle_shards)


def buckets_of_index(
    index: LatentIndex, mix_lengths: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Members (int32) of each bucket, and where each shard's begin among them, from the index alone."""
    if not len(index):
        return {}, {}
    counts = np.zeros(1, np.int64)
    for (codes,) in index.columns("bucket"):
        found = np.bincount(np.zeros_like(codes) if mix_lengths else codes, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    members = [np.empty(count, np.int32) for count in counts]
    starts: list[list[np.ndarray]] = [[] for _ in counts]
    filled, last_shard = [0] * len(counts), [-1] * len(counts)
    row = 0
    for codes, in_shards in index.columns("bucket", "shard"):
        for code in (0,) if mix_lengths else np.unique(codes):
            found = np.arange(len(codes)) if mix_lengths else np.flatnonzero(codes == code)
            members[code][filled[code] : filled[code] + len(found)] = found + row
            shards = in_shards[found]
            starts[code].append(np.flatnonzero(np.diff(shards, prepend=last_shard[code])) + filled[code])
            filled[code], last_shard[code] = filled[code] + len(found), shards[-1]
        row += len(codes)
    keys = [
        "all" if mix_lengths else size_key(index.row(of_bucket[0])) for of_bucket in members if len(of_bucket)
    ]
    ends = [
        np.concatenate([*begins, [len(of_bucket)]]) for begins, of_bucket in zip(starts, members, strict=True)
    ]
    return dict(zip(keys, members, strict=True)), dict(zip(keys, ends, strict=True))


def _buckets_of(samples: Samples, mix_lengths: bool) -> dict[str, np.ndarray]:
    found: dict[str, list[int]] = defaultdict(list)
    for index in range(len(samples)):
        found["all" if mix_lengths else _size_key(samples[index])].append(index)
    return {key: np.array(members, np.int32) for key, members in found.items()}


def _size_key(sample: SampleLike) -> str:
    shapes: list[Sequence[int]] = [
        () if latents is None else latents.shape[1:] for latents in (sample.video, sample.audio)
    ]
    return "+".join("x".join(map(str, shape)) or "none" for shape in shapes)


def check_sets_split(sets: Mapping[str, SampleSet], patch_size: int, context: int) -> None:
    """Raises ValueError naming the first set whose clip tokens do not split over `context` ranks."""
    for name, source in sets.items() if context > 1 else ():
        for members in source.buckets.values():
            sample = source.samples[int(members[0])]
            frames, rows, columns = (0, 0, 0) if sample.video is None else sample.video.shape[1:]
            audio = 0 if sample.audio is None else sample.audio.shape[1]
            check_split(
                frames, rows // patch_size, columns // patch_size, audio, context, f"data set {name!r}"
            )
