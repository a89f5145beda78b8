"""Makes torchtitan 0.2.2 run on a CPU, and imports it without modules that no run uses.

torchtitan queries torch's accelerator once, on import, and its modules copy the result; without one it takes
"cuda". So torch is patched during that import only.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch._utils


def _cpu_module() -> types.ModuleType:
    """CPU stand-in for torch.cuda as torchtitan calls it: one device, the machine's memory, synchronous."""
    cpu = types.ModuleType("cpu_device")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    members = {
        "get_device_name": lambda device=None: "cpu",
        "get_device_properties": lambda device=None: types.SimpleNamespace(total_memory=total),
        "memory_stats": lambda device=None: {},
        "reset_peak_memory_stats": lambda *args: None,
        "empty_cache": lambda: None,
        "set_device": lambda device: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "synchronize": torch.cpu.synchronize,
        "Stream": torch.cpu.Stream,
        "stream": torch.cpu.stream,
        "current_stream": torch.cpu.current_stream,
    }
    for name, member in members.items():
        setattr(cpu, name, member)
    return cpu


@contextmanager
def _answering_cpu() -> Iterator[None]:
    if torch.accelerator.is_available():
        yield
        return
    cpu = _cpu_module()
    with (
        mock.patch.object(torch._utils, "_get_available_device_type", lambda: "cpu"),
        mock.patch.object(torch._utils, "_get_device_module", lambda device_type: cpu),
    ):
        yield


# torchtitan modules that its trainer imports for language models only, with the names it takes from them;
# they would pull in pandas, pyarrow, datasets and the inductor compiler: 1.5 s of processor time and 130 MB
# for every rank (measured on torch 2.13)
_LANGUAGE_MODELS_ONLY = {
    "torchtitan.hf_datasets.text_datasets": ("build_text_validation_dataloader",),
    "torchtitan.models.attention": ("VarlenMetadata",),
}


@contextmanager
def _placeholders() -> Iterator[None]:
    """Empty stand-ins while torchtitan is imported; a later import of these modules gets the real ones."""
    absent = {name: names for name, names in _LANGUAGE_MODELS_ONLY.items() if name not in sys.modules}
    for name, names in absent.items():
        module = types.ModuleType(name)
        module.__dict__.update({member: object for member in names})
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def import_torchtitan() -> None:
    """Import torchtitan's trainer with the right device; called before other modules import torchtitan.

    Raises ImportError where something imported torchtitan earlier and it took the wrong device.
    """
    with _answering_cpu(), _placeholders():
        import torchtitan.train
    if torchtitan.train.utils.device_type == "cuda" and not torch.cuda.is_available():
        raise ImportError(
            "torchtitan was imported before pretrain.titan and took cuda as its device; import "
            "pretrain.titan first"
        )
