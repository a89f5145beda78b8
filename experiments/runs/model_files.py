"""Whether the files of a model folder are those that its checkpoint id names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pretrain.files import read_json, sha256_of

_PART = r"(?:-\d{5}-of-(\d{5}))?\.safetensors"


def check_model_files(folder: Path, where: str) -> None:
    """Raises ValueError in one line where weights are missing or not those of the checkpoint id.

    The id is the digest of the averaged weights, of the plain ones where there are no others
    (`pretrain.model.checkpoint.write_model`). A folder without weights or without an id passes.
    """
    config = folder / "config.json"
    expected = read_json(config, "fetch it again").get("checkpoint_id") if config.is_file() else None
    names = _weights(folder, "ema") or _weights(folder, "model")
    if not expected or not names:
        return
    count = re.search(_PART, names[0])
    if count and count[1] and int(count[1]) != len(names):
        raise ValueError(f"{where}: {len(names)} of {int(count[1])} shards; fetch it again")
    digests = {name: sha256_of(folder / name) for name in names}
    lines = "\n".join(f"{name} {digest}" for name, digest in digests.items())
    found = next(iter(digests.values())) if len(names) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    if found[: len(expected)] != expected:
        raise ValueError(
            f"{where}: weights of {found[: len(expected)]} where config.json says {expected}; the files are "
            "damaged or of another model: export it again"
        )


def _weights(folder: Path, stem: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if re.fullmatch(stem + _PART, path.name))
