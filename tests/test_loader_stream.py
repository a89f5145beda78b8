"""Sets read shard by shard: orders, prefetching, going on anywhere on any number of ranks, and damage on the
way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.loader import Slice, StageLoader, prefetched
from pretrain.data.stream.order import WindowedOrder, full_order
from pretrain.data.stream.sample import Sample
from pretrain.data.stream.sample_set import SampleSet, buckets_of_index, open_set
from pretrain.data.stream.store import LatentStore
from pretrain.randomness import stable_hash
from pretrain.schedule import StageConfig

STAGE = StageConfig(tasks={"T2A": 1, "T2AV": 1, "T2V": 1}, sets={"paired": 1}, audio_sets={"paired": 1})
ROWS = 61


def sample(index: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    frames, tokens = (2, 6) if index % 3 else (3, 9)
    return Sample(
        f"paired-{index}",
        torch.randn(48, frames, 2, 2, generator=generator),
        torch.randn(128, tokens, generator=generator),
        6.0,
        torch.randn(4, 16, generator=generator),
        torch.arange(1),
        torch.randn(1, 192, generator=generator),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("latents") / "paired"
    with LatentWriter(where, "codec", max_shard_bytes=40_000) as writer:  # about 5 samples each
        for index in range(ROWS):
            writer.add(sample(index))
    assert len(LatentStore(where).manifest["shards"]) > 10
    return where


@pytest.fixture(scope="module")
def streamed(folder: Path) -> SampleSet:
    found = open_set(folder, in_memory_bytes=0, shuffle_shards=3)
    assert found.by_shards and not open_set(folder).by_shards
    return found


def loader(
    source: SampleSet, rank: int = 0, world: int = 1, local: int = 12, prefetch: int = 0, seed: int = 3
) -> StageLoader:
    return StageLoader(STAGE, {"paired": source}, seed, 12, Slice(rank, world, local), prefetch)


def rows(batches: Iterator) -> list[tuple[int, int, int]]:
    return [
        (int(batch["task"]), key, epoch)
        for batch, _ in batches
        for key, epoch in zip(batch["sample_ids"].tolist(), batch["epochs"].tolist(), strict=True)
    ]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 99))
def test_a_windowed_order_is_a_permutation_by_windows(sizes: list[int], window: int, seed: int) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)])
    order = WindowedOrder(starts, window, seed)
    drawn = [order[position] for position in range(len(order))]
    assert sorted(drawn) == list(range(sum(sizes)))
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    visits = [shard_of[index] for index in drawn]
    first, last = (
        {shard: position for position, shard in pairs}
        for pairs in (list(enumerate(visits))[::-1], list(enumerate(visits)))
    )
    for position in range(len(visits)):  # never more than two windows' worth of shards are half read
        assert sum(first[shard] <= position <= last[shard] for shard in first) <= window
    assert [order[position] for position in range(len(order))] == drawn


def test_one_window_of_all_shards_reaches_every_order_and_epochs_differ() -> None:
    starts = np.array([0, 1, 3, 4])
    assert len({tuple(WindowedOrder(starts, 3, epoch)[i] for i in range(4)) for epoch in range(300)}) == 24
    assert full_order(5, 1, "a", 0) == full_order(5, 1, "a", 0) != full_order(5, 1, "a", 1)


def test_buckets_by_the_index_are_buckets_by_the_samples(folder: Path, streamed: SampleSet) -> None:
    store = LatentStore(folder)
    by_samples = SampleSet("paired", list(store))
    assert {key: members.tolist() for key, members in streamed.buckets.items()} == {
        key: members.tolist() for key, members in by_samples.buckets.items()
    }
    for key, starts in streamed.shard_starts.items():
        shards = [store.index.row(index)["shard"] for index in streamed.buckets[key]]
        groups = [shards[start:end] for start, end in pairwise(starts)]
        assert all(len(set(group)) == 1 for group in groups) and len(groups) == len(set(shards))
    buckets, _ = buckets_of_index(store.index, mix_lengths=True)
    assert buckets["all"].tolist() == list(range(ROWS))


def test_an_epoch_has_every_sample_of_a_bucket_once(streamed: SampleSet) -> None:
    taken = rows(islice(iter(loader(streamed)), 40))
    for key, members in streamed.buckets.items():
        ids = {stable_hash(f"paired-{index}") for index in members}
        first = Counter(sample_id for _, sample_id, epoch in taken if epoch == 0 and sample_id in ids)
        assert first == Counter(ids), key


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 6]), st.booleans()), min_size=1, max_size=4
    ),
    prefetch=st.integers(0, 3),
    in_memory=st.booleans(),
)
def test_killed_and_resumed_on_other_ranks_the_run_is_the_same(
    folder: Path, streamed: SampleSet, kills: list[tuple[int, int, bool]], prefetch: int, in_memory: bool
) -> None:
    """Each entry: steps done, ranks that do them, and whether micro-batches are split in two."""
    source = open_set(folder) if in_memory else streamed
    steps = sum(done for done, _, _ in kills)
    whole = rows(islice(iter(loader(source)), steps))
    state, seen = loader(source).state_dict(), []
    for done, world, split in kills:
        local = 12 // world // (2 if split and (12 // world) % 2 == 0 else 1)
        per_step = 12 // world // local
        ranks = [loader(source, rank, world, local, prefetch) for rank in range(world)]
        states = []
        for rank in ranks:
            rank.load_state_dict(state)
            stream = iter(rank)
            seen += rows(islice(stream, done * per_step))
            states.append(rank.state_dict())
            stream.close()  # type: ignore[attr-defined]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert Counter(seen) == Counter(whole)


@given(st.integers(0, 50), st.sampled_from([2, 3, 4]))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranks_of_a_step_have_one_task_and_few_shards(
    folder: Path, streamed: SampleSet, seed: int, world: int
) -> None:
    shard_of = {
        stable_hash(row["data_id"]): row["shard"] for row in map(LatentStore(folder).index.row, range(ROWS))
    }
    streams = [iter(loader(streamed, rank, world, 12 // world, seed=seed)) for rank in range(world)]
    for _ in range(4):
        batches = [next(stream)[0] for stream in streams]
        assert len({int(batch["task"]) for batch in batches}) == 1
        assert len({batch["video"].shape[2:] for batch in batches if "video" in batch}) <= 1
        touched = [
            shard_of[key]
            for batch in batches
            for key in sorted(batch["sample_ids"].tolist(), key=lambda key: shard_of[key])
        ]
        assert touched == sorted(touched)  # rank by rank through the shards


def test_prefetching_is_ahead_by_its_depth_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    stream = prefetched(items(), 3)
    assert [next(stream) for _ in range(2)] == [0, 1]
    time.sleep(0.3)
    assert len(made) == 2 + 3 + 1  # the last waits for room
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert list(prefetched(iter(range(5)), 2)) == list(range(5)) == list(prefetched(iter(range(5)), 0))


def test_an_error_comes_as_it_is_in_its_turn() -> None:
    class Odd(Exception): ...

    error = Odd("here")

    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise error

    stream = prefetched(items(), 4)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(Odd) as caught:
        next(stream)
    assert caught.value is error


def test_the_state_is_what_was_used_not_what_was_made(streamed: SampleSet) -> None:
    one = loader(streamed, prefetch=4)
    stream = iter(one)
    for step in range(3):
        next(stream)
        time.sleep(0.05)
        assert f'"step": {step + 1}' in one.state_dict()["position"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_training_goes_on_after_a_damaged_shard_is_repaired(
    folder: Path, tmp_path: Path, prefetch: int
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "paired")
    whole = rows(islice(iter(loader(open_set(folder, in_memory_bytes=0, shuffle_shards=3))), 12))
    shard = tmp_path / "paired/shard-000004.safetensors"
    good = shard.read_bytes()
    for bad, says in ((good[:-200] + bytes(200), "the checksum of"), (None, "shard is missing")):
        shard.unlink()
        if bad is not None:
            shard.write_bytes(bad)
        first = loader(open_set(tmp_path / "paired", in_memory_bytes=0, shuffle_shards=3), prefetch=prefetch)
        seen: list[tuple[int, int, int]] = []
        with pytest.raises(
            (ValueError, FileNotFoundError),
            match=rf"shard-000004.safetensors.*{says}.*--verify, then go on|{says}",
        ):
            for batch in islice(iter(first), 12):
                seen += rows(iter([batch]))
        shard.write_bytes(good)
        second = loader(open_set(tmp_path / "paired", in_memory_bytes=0, shuffle_shards=3), prefetch=prefetch)
        second.load_state_dict(first.state_dict())
        seen += rows(islice(iter(second), 12 - first.step))
        assert seen == whole
