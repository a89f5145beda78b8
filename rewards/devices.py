"""Where a reward's network runs, by name."""

from __future__ import annotations


def device_for(name: str, reward: str) -> str:
    """`auto` is the current GPU where there is one, else the CPU; other names are torch's own.

    Raises ValueError, naming the reward, for a device that is not here.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return f"cuda:{torch.cuda.current_device()}" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{reward}.device: {name!r} is no device; set auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"{reward}.device: {name} is not here; set auto or cpu")
    return name
