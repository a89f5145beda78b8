"""Merges finished units into a set: one index, and last the manifest.json that makes the set readable.

Merging is deterministic, so two ranks that finish together may both do it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.encoding.parts import FORMAT, INDEX, MANIFEST, read_part, shard_name
from pretrain.data.stream.index import IndexWriter
from pretrain.files import sha256_of, write_json
from pretrain.jsonl import FieldError
from pretrain.progress import track
from pretrain.randomness import stable_hash
from pretrain.storage import writing

REJECTED_TOLD = 1000  # of the rejected rows, in manifest.json; all of them are counted
_READERS = 16
_AT_ONCE = 512


@dataclass
class Merged:
    """What the part indexes say together."""

    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: int = 0
    rejected: list[FieldError] = field(default_factory=list)
    # of data ids: 8 bytes each instead of 80
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    index: dict[str, Any] = field(default_factory=dict)  # checksum and size of the index

    def repeated(self) -> frozenset[int]:
        """Hashes that came more than once."""
        import numpy as np

        values, counts = np.unique(np.frombuffer(self.hashes, np.uint64), return_counts=True)
        return frozenset(values[counts > 1].tolist())


def write_index(folder: Path, parts: Mapping[int, int]) -> Merged:
    """Merges part indexes (unit -> number of rejected rows), in the order of the units, into the set's index.

    A data id that comes again is rejected. Raises ValueError where a part index is damaged.
    """
    with writing(folder / INDEX) as temporary:
        merged = _write_index(temporary, folder, parts, frozenset())
        if repeated := merged.repeated():
            merged = _write_index(temporary, folder, parts, repeated)
        merged.rejected.sort(key=lambda bad: bad.line)
        merged.index = {"index_sha256": sha256_of(temporary), "index_bytes": temporary.stat().st_size}
    return merged


def write_manifest(folder: Path, merged: Merged, manifest: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes manifest.json with `facts` (codec_id, ...); `manifest` names rejected rows. Returns it."""
    content = {
        "format": FORMAT,
        **facts,
        "samples": merged.samples,
        **merged.index,
        "rejected": [bad.at(manifest) for bad in merged.rejected[:REJECTED_TOLD]],
        "num_rejected": len(merged.rejected),
        "rejected_fields": dict(sorted(Counter(bad.field for bad in merged.rejected).items())),
        "shards": merged.shards,
    }
    write_json(folder / MANIFEST, content, through=writing, indent=1, ensure_ascii=False)
    return content


def _write_index(path: Path, folder: Path, parts: Mapping[int, int], repeated: frozenset[int]) -> Merged:
    """`repeated`: hashes of data ids of which only the first sample is kept."""
    merged, first_lines = Merged(), {}
    with IndexWriter(path) as writer:
        for part in _read(folder, parts):
            merged.rejected += [FieldError(*bad) for bad in part["rejected"]]
            kept = 0
            for row in part["samples"]:
                name, number = row["data_id"], stable_hash(row["data_id"])
                if number in repeated and name in first_lines:
                    why = f"{name!r} is also on line {first_lines[name]}; make it unique"
                    merged.rejected.append(FieldError(row["line"], "data_id", why))
                    continue
                if number in repeated:
                    first_lines[name] = row["line"]
                merged.hashes.append(number)
                writer.add({**row, "shard": part["unit"]})
                kept += 1
            merged.samples += kept
            if part["samples"]:
                merged.shards[shard_name(part["unit"])] = {
                    "sha256": part["sha256"],
                    "bytes": part["bytes"],
                    "samples": kept,
                }
    return merged


def _read(folder: Path, parts: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """Several at once, to hide an object store's latency."""
    units = sorted(parts)
    with ThreadPoolExecutor(_READERS) as pool:
        starts = range(0, len(units), _AT_ONCE)
        for start in (
            track(starts, len(starts), f"{_AT_ONCE} part indexes merged at a time")
            if len(starts) > 1
            else starts
        ):
            yield from pool.map(
                lambda unit: read_part(folder, unit, parts[unit]), units[start : start + _AT_ONCE]
            )
