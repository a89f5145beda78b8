"""A value read from a GPU tensor waits for all that is queued; a training step's forward and backward read
none."""

from dataclasses import replace

import pytest
from context_ranks import cases
from model_cases import clean_batch, debug_model

from experiments.benchmarks.host_reads import HostReads
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.types import cache_flags


@pytest.mark.parametrize("name", ["debug", "debug_dual_tower", "debug_unified"])
@pytest.mark.parametrize("case", ["joint", "apart", "one of two apart", "clean first frame"])
def test_forward_waits_only_for_what_was_not_asked_before(name, case):
    model, given = debug_model(name=name), cases()[case]
    with HostReads() as asking:
        model(*(replace(part) if part else None for part in given))
    cache_flags(*given)
    with HostReads() as answered:
        model(*given)
    assert asking.count > answered.count
    if name != "debug_unified":  # whose mask is drawn up anew
        assert answered.count == 0


def test_a_step_after_corruption_reads_nothing():
    model, corrupted = debug_model(), corrupt(clean_batch(), ObjectiveConfig(), seed=0)
    cache_flags(corrupted.video, corrupted.audio, corrupted.conditioning)
    with HostReads() as reads:
        velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted).loss(
            80.0, 20.0, 0.2
        ).backward()
    assert reads.count == 0
