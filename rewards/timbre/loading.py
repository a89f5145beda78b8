"""Load weight files of voice encoders without executing code, and check names and shapes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHOWN = 3


def read_weights(path: Path) -> dict[str, Any]:
    """A torch file that holds a dict of tensors and plain values. Raises ValueError in one line for anything
    else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a readable torch file of tensors ({str(error).splitlines()[0]}); get it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict; it is another file")
    return content


def fitted(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`found` when its names and shapes are those of `wanted`. Raises ValueError in one line that names what
    differs."""
    missing = sorted(wanted.keys() - found.keys())
    unknown = sorted(found.keys() - wanted.keys())
    wrong = [
        f"{name} {list(found[name].shape)} not {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    differences = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
        if names
    ]
    if differences:
        raise ValueError(
            f"{where}: of {len(wanted)} tensors {'; '.join(differences)}; it is not the file of this network"
        )
    return dict(found)
