"""What all benchmarks share: options, timing, the facts of a run, the printed table, the JSON."""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import operator
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.doctor import num_cores, processor_name
from pretrain.files import write_json

CPU = torch.device("cpu")
NAME_WIDTH = 32
MATMUL_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
Step = Callable[[], object]
Row = tuple[str, dict[str, Any]]


def make_parser(
    doc: str | None, out_required: bool = True, device: bool = False, repeats: int = 0
) -> argparse.ArgumentParser:
    """`--out` and `--threads`, `--device` where the benchmark has it, `--repeats` where it has a default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=out_required, help="JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    if device:
        default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--device", type=torch.device, default=default)
    if repeats:
        parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; torch has its threads afterwards."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def facts(*packages: str, device: torch.device = CPU) -> dict[str, Any]:
    """When and on what a benchmark ran, without names of machines; versions of torch and of `packages`."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": torch.cuda.get_device_name(device) if cuda else processor_name(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }


def seconds_of(step: Step, device: torch.device = CPU) -> float:
    """Wall time of one call, the device's queue empty before and after."""
    _finish(device)
    start = time.perf_counter()
    step()
    _finish(device)
    return time.perf_counter() - start


def repeated(step: Step, repeats: int, device: torch.device = CPU, warm_up: bool = True) -> list[float]:
    """Seconds of each of `repeats` calls, after one that does not count."""
    if warm_up:
        step()
    return [seconds_of(step, device) for _ in range(repeats)]


def race(
    one: Step, other: Step, budget_s: float, device: torch.device, least: int = 11, most: int = 60
) -> tuple[list[float], list[float]]:
    """Seconds of each call of both, turn by turn: what slows the machine down slows both.

    Each warms up by one call; the order within a round alternates. Ends after about `budget_s`.
    """
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
    """Median, lowest and highest to four digits, and how many."""
    found = {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
    return {**{name: float(f"{value:.4g}") for name, value in found.items()}, "n": len(seconds)}


def peak_matmul_flops(
    dtype: torch.dtype, device: torch.device, tries: int = 4, sides: Sequence[int] = ()
) -> float:
    """FLOP/s of the fastest square matrix product found, over a few `sides` (default: MATMUL_SIDES)."""
    best = 0.0
    for side in sides or MATMUL_SIDES[device.type]:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = min(repeated(lambda a=left, b=right: torch.mm(a, b), tries, device))
        best = max(best, 2 * side**3 / seconds)
    return best


def printed(rows: Iterable[Row], columns: Mapping[str, str]) -> Iterator[Row]:
    """The rows again, each printed as it comes; `columns`: heading -> the figure's keys with dots between."""
    widths = [max(len(heading), 9) for heading in columns]
    heads = [f"{heading:>{width}}" for heading, width in zip(columns, widths, strict=True)]
    print(" " * NAME_WIDTH, *heads, sep="  ")
    for name, figures in rows:
        values = [functools.reduce(operator.getitem, keys.split("."), figures) for keys in columns.values()]
        cells = [f"{_short(value):>{width}}" for value, width in zip(values, widths, strict=True)]
        print(f"{name:{NAME_WIDTH}}", *cells, sep="  ", flush=True)
        yield name, figures


def write(found: dict[str, Any], out: Path | None) -> None:
    """As JSON, where `out` is given."""
    if out:
        write_json(out, found, indent=1)
        print(f"wrote {out}")


def shown(found: Mapping[str, Any], value: str = "mean", sign: bool = False) -> str:
    """`0.123 (0.100 to 0.150)` of {VALUE, low, high}; the value alone where it has no interval."""
    if found[value] is None:
        return "not measured"
    plus = "+" if sign else ""
    if found["low"] is None:
        return f"{found[value]:{plus}.3f}"
    return f"{found[value]:{plus}.3f} ({found['low']:{plus}.3f} to {found['high']:{plus}.3f})"


def _short(value: Any) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
