"""The speed benchmark reads what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import Source, build

from experiments.benchmarks.media_speed import by_pyav, by_reader, speed


def test_both_readers_decode_every_frame(tmp_path: Path) -> None:
    path = build(Source("a.mp4"), tmp_path)
    assert by_reader(path) == by_pyav(path) == 24
    found = speed([path], budget_s=0.0)
    assert found["clips"] == 1 and found["frames"] == 24 and found["ours_by_pyav"]["rounds"] >= 11
    with pytest.raises(ValueError, match="no clips"):
        speed([], budget_s=0.0)
