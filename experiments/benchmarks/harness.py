"""When and on what a benchmark ran."""

from __future__ import annotations

import datetime
import importlib.metadata
from typing import Any

from experiments.doctor import num_cores, processor_name


def facts(*packages: str, device: str = "cpu") -> dict[str, Any]:
    """Without names of machines; versions of torch and of `packages`."""
    import torch

    cuda = torch.device(device).type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }
