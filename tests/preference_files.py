"""A preference model on disk, for tests of what uses it."""

import math
from pathlib import Path

from rewards.preference import PreferenceModel


def preference_model(
    features=("snr_estimate_db",), *, weight=1.5, mean=20.0, scale=10.0, simulated=True
) -> PreferenceModel:
    """Each feature alike."""
    each = [(number,) * len(features) for number in (mean, scale, weight, 0.1)]
    return PreferenceModel(
        tuple(features),
        *each,
        tie=math.log(2.0),
        tie_error=0.1,
        side=0.2,
        side_error=0.1,
        num_votes=9,
        skipped=0,
        simulated=simulated,
    )


def write_model(path: Path, features=("snr_estimate_db",), **changed) -> Path:
    preference_model(features, **changed).save(path)
    return path
