"""Validation is repeatable, covers every level bucket and leaves out what is absent."""

import math

from model_cases import clean_batch, debug_model

from pretrain.objective import ObjectiveConfig
from pretrain.titan.validate import SIGMA_BUCKETS, validation_losses, validation_sums
from pretrain.types import Task


def test_validation_is_repeatable_and_covers_the_buckets() -> None:
    model, batches = debug_model(), [clean_batch(seed=seed) for seed in range(5)]
    first, second = (validation_losses(validation_sums(model, batches, ObjectiveConfig())) for _ in range(2))
    assert first == second
    assert set(first) == {
        f"validation/{name}/{centre}" for name in ("video", "audio") for centre in SIGMA_BUCKETS
    }
    assert all(math.isfinite(value) and value > 0 for value in first.values())


def test_absent_modality_is_left_out() -> None:
    losses = validation_losses(validation_sums(debug_model(), [clean_batch(Task.T2A)], ObjectiveConfig()))
    assert list(losses) == ["validation/audio/0.1"]
