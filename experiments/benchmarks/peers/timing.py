"""Two contestants in one process, turn by turn: what slows the machine down slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Step = Callable[[], object]


def seconds_of(step: Step, device: torch.device) -> float:
    """Wall time of one call, the device's queue empty before and after."""
    _finish(device)
    start = time.perf_counter()
    step()
    _finish(device)
    return time.perf_counter() - start


def race(
    one: Step, other: Step, budget_s: float, device: torch.device, least: int = 11, most: int = 60
) -> tuple[list[float], list[float]]:
    """Seconds of each call, after two calls each to warm up; the order within a round alternates. Ends after
    about `budget_s`."""
    for step in (one, other):
        step()
    start, rounds = time.perf_counter(), ([], [])
    while len(rounds[0]) < least or (len(rounds[0]) < most and time.perf_counter() - start < budget_s):
        order = (0, 1) if len(rounds[0]) % 2 == 0 else (1, 0)
        for index in order:
            rounds[index].append(seconds_of((one, other)[index], device))
    return rounds


def ratio(
    ours: list[float], theirs: list[float], seed: int = 0, resamples: int = 2000
) -> dict[str, float | int]:
    """How many times as fast ours is: median of the rounds' theirs / ours, 95 % bootstrap interval over
    rounds."""
    pairs = np.array(theirs) / np.array(ours)
    draws = np.random.default_rng(seed).choice(pairs, (resamples, len(pairs)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {
        "ratio": round(float(np.median(pairs)), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "rounds": len(pairs),
    }


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median, lowest and highest."""
    return {
        "median": _short(statistics.median(seconds)),
        "low": _short(min(seconds)),
        "high": _short(max(seconds)),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
