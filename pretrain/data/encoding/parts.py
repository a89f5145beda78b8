"""The units an encoded set is made of: a shard and a part index each.

A unit is a stretch of rows. Its shard is written first, its part index second and each appears whole or not
at all, so a unit without a part index is pending. Part indexes are named UNIT-REJECTED.json: a listing
shows progress and the number of bad rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.data.stream.sample import Sample, checksum, pack
from pretrain.files import read_json, save_tensors, sha256_of, write_json
from pretrain.jsonl import FieldError
from pretrain.storage import list_folder, remove_file, writing

FORMAT = "nava-latents-2"
MANIFEST, INDEX, PARTS = "manifest.json", "index.arrow", "parts"
_PART = re.compile(r"(\d{6,})-(\d+)\.json")


class Draft:
    """One unit's shard, in memory. `add` raises ValueError naming a sample with non-finite tensors."""

    def __init__(self, latent_dtype: str) -> None:
        self.latent_dtype = latent_dtype
        self.rows: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.num_bytes = 0

    def add(self, sample: Sample) -> int:
        """Takes a sample up; returns its bytes."""
        tensors = pack(sample, self.latent_dtype)
        number = len(self.rows)
        frames, height, width = tensors["video"].shape[1:] if "video" in tensors else (0, 0, 0)
        self.rows.append(
            {
                "data_id": sample.data_id,
                "line": sample.meta.get("line", 0),
                "row": number,
                "frames": frames,
                "height": height,
                "width": width,
                "tokens": tensors["audio"].shape[1] if "audio" in tensors else 0,
                "text": len(tensors["text"]),
                "spans": len(tensors["speakers"]),
                "video_rate_hz": sample.video_rate_hz,
                "crc32": checksum(tensors),
            }
        )
        self.tensors.update({f"{number:07d}.{name}": tensor for name, tensor in tensors.items()})
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self.num_bytes += size
        return size


def shard_name(unit: int) -> str:
    return f"shard-{unit:06d}.safetensors"


def write_unit(
    folder: Path, unit: int, draft: Draft, rejected: Sequence[FieldError] = (), media: str = ""
) -> None:
    """Writes the shard (none where all rows were rejected), then its part index. media: `media_digest` of
    the files that were read, "" where it is not known. Raises OSError."""
    part: dict[str, Any] = {
        "unit": unit,
        "samples": draft.rows,
        "rejected": [[bad.line, bad.field, bad.message] for bad in rejected],
        "media": media,
    }
    if draft.rows:
        with writing(folder / shard_name(unit)) as temporary:
            save_tensors(draft.tensors, temporary)
            part |= {"sha256": sha256_of(temporary), "bytes": temporary.stat().st_size}
    path = folder / PARTS / f"{unit:06d}-{len(rejected)}.json"
    write_json(path, part, through=writing, indent=None, ensure_ascii=False)


def list_parts(folder: Path) -> dict[int, int]:
    """Finished units, each with its number of rejected rows."""
    found = [_PART.fullmatch(path.name) for path in list_folder(folder / PARTS)]
    return {int(match[1]): int(match[2]) for match in found if match}


def read_part(folder: Path, unit: int, num_rejected: int) -> dict[str, Any]:
    return read_json(
        folder / PARTS / f"{unit:06d}-{num_rejected}.json", "remove it and run `nava encode` again"
    )


def forget_unit(folder: Path, unit: int, num_rejected: int) -> None:
    """A unit becomes one that is still to do. The set is no set before that, so that nobody opens it half."""
    remove_file(folder / MANIFEST)
    remove_file(folder / PARTS / f"{unit:06d}-{num_rejected}.json")
    remove_file(folder / shard_name(unit))
