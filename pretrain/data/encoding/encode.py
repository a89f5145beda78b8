"""Manifests -> encoded sets: every clip is decoded and encoded once, before training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.data.encoding.clips import Streams
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode_units import SetEncoder
from pretrain.data.encoding.parts import PARTS
from pretrain.data.encoding.units import split
from pretrain.data.manifest import read_manifest
from pretrain.owned import owned_folder
from pretrain.progress import track


def encode_sets(
    config: EncodeConfig, manifests: Mapping[str, Path], codec: Path, out: Path
) -> dict[str, Any]:
    """Encodes each manifest into out/<set>; returns counts, rejected rows and seconds per set.

    Raises FileNotFoundError or ValueError in one line; a set is written whole or not at all.
    """
    codecs = load_codecs(codec)
    return {
        name: encode_set(config, path, codecs, out / name, name in config.audio_only_sets)
        for name, path in manifests.items()
    }


def encode_set(
    config: EncodeConfig, manifest: Path, codecs: Codecs, out: Path, audio_only: bool = False
) -> dict[str, Any]:
    """Encodes one manifest in this process, replacing what is in `out` when it is complete.

    Rows whose media are bad are rejected with their reason; more than `max_bad_fraction` raises ValueError.
    """
    started = time.perf_counter()
    read_manifest(manifest, config.max_bad_fraction)  # bad rows stop the work before it starts
    units = split(manifest, config.rows_per_shard)
    streams = Streams(video=not audio_only)
    with owned_folder(out, "encode") as temporary:
        encoder = SetEncoder(
            config, out.name, str(manifest), units, codecs.codec_id, streams, temporary, codecs.audio.channels
        )
        clips = encoder.encode(range(len(units)), codecs)
        for _ in track(clips, units.num_rows, f"{out.name}: clips encoded"):
            pass
        content = encoder.finish()
        shutil.rmtree(temporary / PARTS)
    return {
        "samples": content["samples"],
        "rejected": content["rejected"],
        "seconds": round(time.perf_counter() - started, 2),
    }
