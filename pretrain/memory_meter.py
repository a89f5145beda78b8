"""Bytes that a piece of work holds at its peak, from the tensors that it makes: on a CPU too, whose allocator
does not say."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRECISION = 0.005  # of the peak, that may be made between two counts


class MemoryMeter(TorchDispatchMode):
    """`peak` of what lives of the given tensors and all that are made inside, by storage: views count once.

    What a kernel takes within itself is not seen. A mode of dispatch slows small operations several times.
    """

    def __init__(self, there: Iterable[Tensor] = (), meta: bool = False) -> None:
        """meta: what is on the meta device counts as if it were held, and nothing else does."""
        super().__init__()
        self.meta = meta
        self.peak = self._since = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in there:
            self._note(tensor)
        self.peak = self.held()

    def held(self) -> int:
        """Bytes that live now."""
        total, gone = 0, []
        for key, reference in self._storages.items():
            storage = reference()
            if storage is None:
                gone.append(key)
            elif (storage.device.type == "meta") == self.meta:
                total += storage.nbytes()
        for key in gone:
            del self._storages[key]
        return total

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._since += sum(self._note(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        if self._since > PRECISION * self.peak:
            self.look()
        return out

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self.look()

    def look(self) -> None:
        """Count what lives, which takes as long as there are tensors."""
        self.peak, self._since = max(self.peak, self.held()), 0

    def _note(self, tensor: Tensor) -> int:
        """Bytes of its storage, 0 if that was known."""
        fresh = 0
        for part in parts_of(tensor):
            storage = part.untyped_storage()
            known = self._storages.get(id(storage))
            if known is None or known() is not storage:
                self._storages[id(storage)] = weakref.ref(storage)
                fresh += storage.nbytes()
        return fresh


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the memory of one that wraps others (a shard, a quantised state)."""
    names = getattr(tensor, "__tensor_flatten__", None)
    if names is None:
        return [tensor]
    inner = [getattr(tensor, name) for name in names()[0]]
    return [part for one in inner if isinstance(one, Tensor) for part in parts_of(one)]


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> list[Tensor]:
    """Parameters, buffers, gradients and the optimizer's states."""
    found = [*model.parameters(), *model.buffers()]
    found += [value.grad for value in model.parameters() if value.grad is not None]
    for state in optimizer.state.values() if optimizer else ():
        found += [value for value in state.values() if isinstance(value, Tensor)]
    return found
