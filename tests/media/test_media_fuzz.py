"""Damaged files never crash the reader, hang it over ten seconds or cost more memory than they may.

The mutations of a seed are the same on every machine; `-m slow` runs 2,000, the default 144.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import Source, build, numbered_frame
from fuzzing import MIB, Answer, LimitedReader, mutated
from PIL import Image
from sources import AUDIO, VIDEO

MEMORY_BYTES = 1024 * MIB
KINDS = {
    "mp4": ("h264", "aac"),
    "m4v": ("mpeg4", "aac"),
    "mov": ("prores", "s16le"),
    "mkv": ("vp9", "flac"),
    "webm": ("vp8", "opus"),
    "ts": ("h264", "mp3"),
    "avi": ("mjpeg", "u8"),
    "flv": ("flv1", "mp3"),
    "wav": (None, "s24le"),
    "flac": (None, "flac"),
    "ogg": (None, "vorbis"),
    "mp3": (None, "mp3"),
}
STILLS = ("png", "jpg", "webp", "gif", "bmp", "tiff")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("valid")
    found = []
    for suffix, (video, audio) in KINDS.items():
        rate = 48_000 if audio == "opus" else 44_100
        picture = VIDEO[video] if video else None
        found.append(
            build(Source(f"a.{suffix}", picture, AUDIO[audio], num_frames=12, sample_rate_hz=rate), folder)
        )
    for suffix in STILLS:
        found.append(folder / f"still.{suffix}")
        Image.fromarray(numbered_frame(5, 64, 96)).save(found[-1])
    return found


@pytest.fixture(scope="module")
def readers() -> Iterator[list[LimitedReader]]:
    found = [LimitedReader(MEMORY_BYTES) for _ in range(2)]
    yield found
    for reader in found:
        reader.close()


def answers(
    readers: list[LimitedReader], valid: list[Path], folder: Path, count: int, seed: int
) -> dict[Path, Answer]:
    """`count` damaged files, as many of each kind, read by two processes."""
    damaged = []
    for turn in range(count):
        source = valid[turn % len(valid)]
        path = folder / f"{turn}{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), np.random.default_rng((seed, turn))))
        damaged.append(path)

    with ThreadPoolExecutor(2) as pool:
        parts = [(reader, damaged[turn::2]) for turn, reader in enumerate(readers)]
        halves = list(pool.map(lambda part: [(path, part[0].read(path)) for path in part[1]], parts))
    return dict([*halves[0], *halves[1]])


def check(found: dict[Path, Answer]) -> None:
    wrong = {path.name: answer for path, answer in found.items() if answer.outcome not in ("read", "refused")}
    assert wrong == {}
    for path, answer in found.items():
        if answer.outcome == "refused":
            assert str(path) in answer.said and "\n" not in answer.said, answer.said
    outcomes = Counter(answer.outcome for answer in found.values())
    assert min(outcomes["read"], outcomes["refused"]) > 0.1 * len(found)  # the damage is neither none nor all


def test_valid_files_are_read_within_the_limits(readers: list[LimitedReader], valid: list[Path]) -> None:
    assert {path.name: readers[0].read(path).said for path in valid} == {path.name: "" for path in valid}


def test_a_process_that_dies_or_takes_too_much_is_seen(tmp_path: Path, valid: list[Path]) -> None:
    reader = LimitedReader(1 * MIB)
    try:
        assert {reader.read(path).outcome for path in valid} & {"crashed", "died", "refused"}
    finally:
        reader.close()


def test_damaged_files_are_read_or_refused(
    readers: list[LimitedReader], valid: list[Path], tmp_path: Path
) -> None:
    check(answers(readers, valid, tmp_path, 144, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_damaged_files_are_read_or_refused(
    readers: list[LimitedReader], valid: list[Path], tmp_path: Path
) -> None:
    check(answers(readers, valid, tmp_path, 2000, seed=2))
