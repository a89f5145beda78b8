"""Manifests -> encoded sets: every clip is read and encoded once, and training never opens a media file again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.codecs.base import Codecs, load_codecs
from pretrain.data.buckets import BucketConfig
from pretrain.data.clips import Streams
from pretrain.data.encode_units import SetEncoder
from pretrain.data.manifest import MAX_BAD_FRACTION, read_manifest
from pretrain.data.parts import PARTS
from pretrain.data.sample import DTYPES
from pretrain.data.store import replace_folder
from pretrain.data.units import split
from pretrain.progress import track


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How sets are encoded and stored."""

    audio_only_sets: tuple[str, ...] = ("audio_only", "hq_audio")  # only the sound of these rows is used
    fps: float = 24.0  # clips of another rate are brought to this one
    latent_dtype: str = "float32"  # float16 or bfloat16 halve the disk at full size
    rows_per_shard: int = 128  # a unit of work; about 1.8 GB at full size
    max_bad_fraction: float = MAX_BAD_FRACTION
    batch_size: int = 32  # clips of one shape that the codecs take together; at full size 1 or 2
    num_readers: int = 2  # threads that read media
    buckets: BucketConfig = field(default_factory=BucketConfig)

    def __post_init__(self) -> None:
        if self.latent_dtype not in DTYPES:
            raise ValueError(f"latent_dtype: unknown {self.latent_dtype!r}; valid: {', '.join(DTYPES)}")
        if min(self.rows_per_shard, self.batch_size, self.num_readers) < 1 or not 0 < self.fps < float("inf"):
            raise ValueError("rows_per_shard, batch_size, num_readers and fps must be positive")


def encode_sets(config: EncodeConfig, manifests: Mapping[str, Path], codec: Path, out: Path) -> dict[str, Any]:
    """Encodes each manifest into out/<set>; returns counts, rejected rows and seconds per set.

    Raises FileNotFoundError or ValueError in one line; a set is written whole or not at all.
    """
    codecs = load_codecs(codec)
    return {name: encode_set(config, path, codecs, out / name, name in config.audio_only_sets) for name, path in manifests.items()}


def encode_set(config: EncodeConfig, manifest: Path, codecs: Codecs, out: Path, audio_only: bool = False) -> dict[str, Any]:
    """Encodes one manifest in this process, replacing what is in `out` when it is complete.

    Rows whose media are bad are rejected with their reason; more than `max_bad_fraction` raises ValueError.
    """
    started = time.perf_counter()
    read_manifest(manifest, config.max_bad_fraction)  # bad rows stop the work before it starts
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    units = split(manifest, config.rows_per_shard)
    streams = Streams(video=not audio_only)
    encoder = SetEncoder(config, out.name, str(manifest), units, codecs.codec_id, streams, temporary, codecs.audio.channels)
    try:
        clips = encoder.encode(range(len(units)), codecs)
        for _ in track(clips, units.num_rows, f"{out.name}: clips encoded"):
            pass
        content = encoder.finish()
        shutil.rmtree(temporary / PARTS)
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"samples": content["samples"], "rejected": content["rejected"], "seconds": round(time.perf_counter() - started, 2)}
