"""What a part answers with: figures as they come, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from experiments.benchmarks.gpu_parts.sizes import PartSize


class Figures(NamedTuple):
    """Figures of one name, JSON types, and what a table says of them."""

    name: str
    figures: dict[str, Any]
    words: str


Measure = Callable[[PartSize, torch.device], Iterator[Figures]]


class NotHere(Exception):
    """What the part needs is not on this machine; it is skipped, with this as its reason."""


class OutOfBounds(Exception):
    """It was measured, and is not what it has to be; the part has failed, its figures are kept."""
