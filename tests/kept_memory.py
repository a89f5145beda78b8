"""How many bytes a forward pass leaves allocated for its backward pass."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Every storage that an operation makes; not what it is given from outside, or a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self.outside: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for reference, _ in _references((args, kwargs)):
            if reference.cdata not in self.seen:
                self.outside[reference.cdata] = reference
        out = func(*args, **(kwargs or {}))
        self.seen.update(
            {pair[0].cdata: pair for pair in _references(out) if pair[0].cdata not in self.outside}
        )
        return out


def _references(values: Any) -> list[tuple[StorageWeakRef, int]]:
    storages = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return [(StorageWeakRef(storage), storage.nbytes()) for storage in storages]


def kept_bytes(forward: Callable[[], Any]) -> int:
    """Bytes of the storages made in `forward` that are alive as long as its result is, the result's own
    included."""
    with _Storages() as storages:
        result = forward()
    gc.collect()
    kept = sum(size for reference, size in storages.seen.values() if not reference.expired())
    del result
    return kept
