"""A GPU that is not there: tensors of device "cuda" whose values are computed on the CPU.

torch's FakeTensorMode knows which device every operation answers on and refuses to mix devices, but holds
no values. `PretendGpu` is that mode with the values beside it, so that whole rollouts and training steps run,
and so that what would make a GPU wait (a value read from it, a copy to or from it) is counted by the place in
our code that asks. The autograd engine does not run on such tensors: forward passes and losses only.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._C import TensorBase
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

aten = torch.ops.aten
T = TypeVar("T")
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
PACKAGES = ("pretrain", "finetune", "rewards", "orchestration", "experiments")
Kind = Literal["read", "send"]  # from the GPU to the host, and the other way
_ATTENTION = {
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
}
_INDEX_PUT = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class PretendGpu(FakeTensorMode):
    """Counts `crossings`: (read or send, "package/file.py function") -> times. Enter it by `pretend_gpu`.

    Every crossing that is not declared non_blocking is counted: torch synchronises the stream for each.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.crossings: Counter[tuple[Kind, str]] = Counter()
        self._inside = False

    def places(self) -> dict[str, int]:
        """`read pretrain/x.py f` -> times."""
        return {f"{kind} {place}": count for (kind, place), count in sorted(self.crossings.items())}

    def cross(self, kind: Kind) -> None:
        """Count one."""
        self.crossings[kind, _asked_by()] += 1

    def hold(self, value: Tensor, device: torch.device = GPU) -> Tensor:
        """A tensor of real values as one on `device`; not counted."""
        with unset_fake_temporarily():
            kept = value_of(value).detach()
            outside = torch.empty_strided(kept.shape, kept.stride(), dtype=kept.dtype, device="meta")
            held = FakeTensor(self, outside, device)
        held.on_host = kept  # type: ignore[attr-defined]
        return held

    def put(self, value: T, device: torch.device = GPU) -> T:
        """A tensor, module (in place), dataclass, mapping or list with its tensors on `device`.

        Not counted.
        """
        if isinstance(value, Tensor):
            return self.hold(value, device)  # type: ignore[return-value]
        if isinstance(value, nn.Module):
            return self._put_module(value, device)  # type: ignore[return-value]
        if is_dataclass(value) and not isinstance(value, type):
            parts = {item.name: self.put(getattr(value, item.name), device) for item in fields(value)}
            return replace(value, **parts)
        if isinstance(value, dict):
            return {key: self.put(part, device) for key, part in value.items()}  # type: ignore[return-value]
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return type(value)(self.put(part, device) for part in value)  # type: ignore[return-value]
        return value

    def _put_module(self, module: nn.Module, device: torch.device) -> nn.Module:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    trained = parameter.requires_grad
                    part._parameters[name] = nn.Parameter(self.hold(parameter, device), trained)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.hold(buffer, device)
        return module

    def dispatch(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._inside or func.namespace == "prim":
            return super().dispatch(func, types, args, kwargs)
        if _is_composite(func):  # these arrive whole in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        masked = _by_mask(func, args)
        if masked or _reads_values(func):
            if on_gpu:
                self.cross("read")
            return self._held(_on_host(func, args, kwargs), GPU if on_gpu else CPU)
        self._inside = True
        try:
            answer = super().dispatch(func, types, args, kwargs)
        finally:
            self._inside = False
        self._count_copies(func, args, kwargs, answer)
        found = _on_host(func, args, kwargs)
        pairs = list(zip(tree_leaves(answer), tree_leaves(found), strict=True))
        for place, (fake, value) in enumerate(pairs):
            if isinstance(fake, FakeTensor):
                # what a kernel keeps for its backward pass differs between devices
                assert isinstance(value, Tensor) and (place or fake.shape == value.shape), func
                fake.on_host = value  # type: ignore[attr-defined]
        return answer

    def _held(self, found: Any, device: torch.device) -> Any:
        leaves, spec = tree_flatten(found)
        held = [self.hold(leaf, device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tree_unflatten(held, spec)

    def _count_copies(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Any) -> None:
        """Copies from one device to another, and index tensors that the host holds."""
        if func in (aten._to_copy.default, aten.copy_.default):
            target, source = (answer, args[0]) if func is aten._to_copy.default else args[:2]
            later = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if target.device.type != source.device.type:
                reads = source.device.type == "cuda"
                if reads or not (later or (source.ndim == 0 and func is aten.copy_.default)):
                    self.cross("read" if reads else "send")
        elif func is aten.index.Tensor or func in _INDEX_PUT:
            for index in args[1]:
                if isinstance(index, Tensor) and index.device != args[0].device:
                    self.cross("send" if args[0].device.type == "cuda" else "read")


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _reads_values(func: Any) -> bool:
    return torch.Tag.data_dependent_output in func.tags or (
        torch.Tag.dynamic_output_shape in func.tags and func is not aten.index.Tensor
    )


def _by_mask(func: Any, args: Sequence[Any]) -> bool:
    """Selection by a mask looks for its True; a number written by a mask does not (masked_fill)."""
    if func is not aten.index.Tensor and func not in _INDEX_PUT:
        return False
    masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and not (func in _INDEX_PUT and args[2].numel() == 1)


def _on_host(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operation on the values, on the CPU."""
    leaves, spec = tree_flatten((list(args), dict(kwargs)))
    leaves = [value_of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    leaves = [CPU if isinstance(leaf, torch.device) and leaf.type == "cuda" else leaf for leaf in leaves]
    host_args, host_kwargs = tree_unflatten(leaves, spec)
    host_kwargs.pop("pin_memory", None)
    if func in _ATTENTION:
        return _attention(func, host_args, host_kwargs)
    return func(*host_args, **host_kwargs)


def _attention(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A kernel of the GPU by the CPU's: the attended first, the rest (statistics, seeds) as it comes."""
    mask = args[3] if func is not aten._scaled_dot_product_flash_attention.default and len(args) > 3 else None
    scale = kwargs.get("scale")
    attended = torch.nn.functional.scaled_dot_product_attention(*args[:3], attn_mask=mask, scale=scale)
    sizes = len(func._schema.returns)
    return (attended, *[attended.new_zeros(()) for _ in range(sizes - 1)])


def value_of(tensor: Tensor) -> Tensor:
    """The values, on the CPU; not counted."""
    return tensor.on_host if isinstance(tensor, FakeTensor) else tensor  # type: ignore[attr-defined]


def _asked_by() -> str:
    """The innermost function of our packages on the stack."""
    frame = sys._getframe(1)
    while frame:
        parts = Path(frame.f_code.co_filename).parts
        for package in PACKAGES:
            if package in parts and "site-packages" not in parts:
                at = len(parts) - 1 - parts[::-1].index(package)
                return f"{'/'.join(parts[at:])} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class _Values(TorchFunctionMode):
    """What leaves torch: numpy and lists. Torch refuses numpy of a GPU's tensor, and so does this."""

    def __init__(self, gpu: PretendGpu, backward: Callable[[Tensor], None] | None) -> None:
        super().__init__()
        self.gpu, self.backward = gpu, backward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward and self.backward and isinstance(args[0], FakeTensor):
            return self.backward(args[0])
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], FakeTensor):
            if args[0].device.type == "cuda":
                raise TypeError(f"can't convert {args[0].device} device type tensor to numpy")
            with unset_fake_temporarily():
                return func(value_of(args[0]).detach(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def pretend_gpu(backward: Callable[[Tensor], None] | None = None) -> Iterator[PretendGpu]:
    """Device "cuda" exists inside, for what was put there or made there.

    backward: what `loss.backward()` does instead.
    """
    with device_guard(), mock.patch.object(torch.cuda, "_lazy_init", lambda: None):
        gpu = PretendGpu()

        def tolist(tensor: Tensor) -> Any:
            if tensor.device.type == "cuda":
                gpu.cross("read")
            with unset_fake_temporarily():
                return TensorBase.tolist(value_of(tensor))

        with mock.patch.object(FakeTensor, "tolist", tolist), gpu, _Values(gpu, backward):
            yield gpu


@contextmanager
def device_guard() -> Iterator[None]:
    """A guard of device "cuda", without which even a slice of a fake tensor there raises.

    torch's builds for CPUs have none; the CPU's, which does nothing, takes its place. Builds for CUDA see to
    it themselves.
    """
    if torch.version.cuda or torch.version.hip:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    # an array by DeviceType: CPU, CUDA, ...
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[1] = guards[1], guards[0]
    try:
        yield
    finally:
        guards[1] = before
