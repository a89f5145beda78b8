"""Curation past memory: choices in parts against the dense greedy one, closed forms and brute force."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks.curation import synthetic
from pretrain.data.curate import choose, facility_location
from pretrain.data.curation.parts import PartLimits, choose_in_parts
from pretrain.data.curation.report import share_of_best
from pretrain.data.curation.worth import Worth, embed
from pretrain.data.features import similarities


def made(folder: Path, count: int, seed: int = 0) -> tuple[Worth, np.ndarray]:
    """(worth by blocks, the dense kernel)."""
    groups = synthetic(count, seed)
    weights = np.random.default_rng(seed).uniform(0.4, 1.0, count)
    return embed(groups, weights, folder / "vectors.npy"), similarities(groups) * weights[None]


def test_blocks_are_the_dense_kernel(tmp_path):
    worth, dense = made(tmp_path, 300)
    rows, columns = np.arange(20, 120), np.arange(300)[::7]
    assert np.allclose(worth.block(rows, columns), dense[np.ix_(rows, columns)], atol=1e-4)
    assert np.allclose(worth.covered(rows, columns), dense[np.ix_(rows, columns)].max(axis=1), atol=1e-4)


def test_one_part_is_the_greedy_choice(tmp_path):
    worth, _ = made(tmp_path, 300)
    every = np.arange(300)
    found = choose_in_parts(worth, 30, limits=PartLimits(clips=300, cells=300 * 300))
    assert found.indices == choose(worth.block(every, every), 30)
    assert (found.groups, found.parts, found.represented) == (1, 1, 300)


def test_one_of_each_of_far_clusters_is_chosen(tmp_path):
    """Twelve clusters, each of the same clip thirty times and in every part: the best choice is known."""
    places = 100.0 * np.random.default_rng(0).standard_normal((12, 5))
    labels = np.tile(np.arange(12), 30)
    worth = embed([places[labels]], np.ones(360), tmp_path / "vectors.npy")
    found = choose_in_parts(worth, 12, 3, 1, PartLimits(clips=120, cells=40_000))
    assert found.parts == 3 and sorted(labels[found.indices]) == list(range(12))
    assert worth.covered(np.arange(360), np.array(found.indices)).sum() == pytest.approx(360.0)


@pytest.mark.parametrize(("budget", "groups"), [(15, 1), (60, 1), (150, 3)])
def test_value_is_near_that_of_the_dense_choice(tmp_path, budget, groups):
    worth, dense = made(tmp_path, 800, seed=budget)
    limits = PartLimits(clips=200, cells=2 * 74**2)
    found = choose_in_parts(worth, budget, budget, 1, limits)
    assert (found.groups, len(set(found.indices))) == (groups, budget)
    best = facility_location(dense, choose(dense, budget))
    random = np.random.default_rng(budget).choice(800, budget, replace=False)
    assert facility_location(dense, found.indices) >= 0.95 * best
    assert facility_location(dense, random.tolist()) < 0.945 * best


def test_the_choice_is_that_of_the_seed_whatever_the_processes(tmp_path):
    worth, _ = made(tmp_path, 400)
    limits = PartLimits(clips=100, cells=20_000)
    one, two = (choose_in_parts(worth, 25, 7, nproc, limits) for nproc in (1, 2))
    assert one == two and one.parts == 4
    assert choose_in_parts(worth, 25, 8, 1, limits).indices != one.indices
    assert choose_in_parts(worth, 400, 7, 1, limits).indices == list(range(400))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(4, 9), budget=st.integers(1, 3))
def test_what_is_said_of_the_best_is_true(tmp_path_factory, seed, count, budget):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("bound") / "vectors.npy"
    worth = embed([rng.standard_normal((count, 3))], rng.uniform(0.1, 1.0, count), path)
    every = np.arange(count)
    dense = worth.block(every, every)
    some = rng.choice(count, budget, replace=False).tolist()
    best = max(facility_location(dense, subset) for subset in combinations(range(count), budget))
    of_all = facility_location(dense, range(count)) / count
    share = share_of_best(worth, every, some, of_all)
    assert 0 < share <= facility_location(dense, some) / best + 1e-5
