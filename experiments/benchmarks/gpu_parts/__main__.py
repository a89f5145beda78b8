"""Measures parts in this process: `python -m experiments.benchmarks.gpu_parts PART ... --to FOLDER`.

Each part's record is FOLDER/PART.json, written anew with every finding, so that what was found is there
however the process ends. `experiments.benchmarks.gpu_hour` starts one such process per part.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.gpu_parts.catalog import PARTS, MeasuredPart
from experiments.benchmarks.gpu_parts.finding import NotHere, OutOfBounds
from experiments.benchmarks.gpu_parts.sizes import SIZES, PartSize
from pretrain.config import one_line
from pretrain.files import write_json

MAX_REASON = 300  # characters


def carry_out(part: MeasuredPart, size: PartSize, device: torch.device, record_file: Path) -> dict[str, Any]:
    """The part's record, as it is in the file at the end: status ok, failed or skipped, reason, findings."""
    record: dict[str, Any] = {"status": "running", "reason": "", "words": [], "figures": {}}
    write_json(record_file, record)
    try:
        for finding in part.measure(size, device):
            record["figures"][finding.name] = finding.figures
            record["words"] += [finding.words] if finding.words else []
            write_json(record_file, record)
        record["status"] = "ok"
    except NotHere as error:
        record |= {"status": "skipped", "reason": one_line(error)}
    except OutOfBounds as error:
        record |= {"status": "failed", "reason": one_line(error)}
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {one_line(error, MAX_REASON)}"
        record |= {"status": "failed", "reason": reason}
    write_json(record_file, record)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=list(PARTS), metavar="PART")
    parser.add_argument("--size", choices=list(SIZES), default="debug")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the command that started it
    for name in options.parts:
        record = carry_out(
            PARTS[name], SIZES[options.size], torch.device(options.device), options.to / f"{name}.json"
        )
        print(f"{name}: {record['status']} {record['reason']}", flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
