"""A manifest of a few real clips and a fitted codec, for encoding in other processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode_ranks import EncodeJob, SetJob, encode_rank
from pretrain.data.manifest import ManifestRow, write_manifest

CONFIG = EncodeConfig(batch_size=2, rows_per_shard=3, num_readers=1, max_bad_fraction=0.5)


def write_world(folder: Path, rows: list[ManifestRow]) -> Path:
    """folder/rows.jsonl, folder/audio_only.jsonl (the last three rows) and folder/codec."""
    write_manifest(folder / "rows.jsonl", rows)
    write_manifest(folder / "audio_only.jsonl", rows[-3:])
    write_manifest(folder / "good.jsonl", [*rows[:4], *rows[5:8]])
    config = CodecConfig(
        video_sets=("good",),
        audio_sets=("good",),
        validation_set="good",
        max_clips=7,
        text_width=64,
        griffin_lim_iterations=1,
    )
    fit_codecs(config, folder, folder / "codec")
    return folder


def job(world: Path, to: Path | str, config: EncodeConfig = CONFIG, **changes) -> EncodeJob:
    sets = (
        SetJob(name="rows", manifest=str(world / "rows.jsonl")),
        SetJob(name="audio_only", manifest=str(world / "audio_only.jsonl"), video=False),
    )
    return EncodeJob(
        **{"config": config, "sets": sets, "codec": str(world / "codec"), "to": str(to), **changes}
    )


def encode_with(one: EncodeJob, world_size: int = 1) -> None:
    """All ranks one after another, as if each were alone."""
    for rank in range(world_size):
        encode_rank(one, rank, world_size)


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder by its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def start_rank(one: EncodeJob, folder: Path, rank: int, world_size: int) -> subprocess.Popen:
    """A rank as torchrun starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    one.save(folder / "resolved.json")
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pretrain.data.encoding.encode_ranks", str(folder / "resolved.json")],
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process: subprocess.Popen, appeared: Path, timeout_s: float = 60.0) -> None:
    """SIGKILL as soon as there is a file."""
    end = time.monotonic() + timeout_s
    while not appeared.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert appeared.exists()
