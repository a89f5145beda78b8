"""What has not been measured on a GPU, by one command of ten minutes at most:

    python -m experiments.benchmarks.gpu_hour --to gpu_hour.json

Correctness against fp64, a training, LoRA (bf16 and int8 base) and generation step of `nava_6b`, one of its
blocks against diffusers' as it is and compiled, attention kernels, host synchronisations, and memory against
`nava plan`. Each part runs in a process of its own under a limit of its own: what crashes, runs out of memory
or takes too long is that part's reason, and the others go on. FILE is written after each part; the same
command measures what is not "ok" in it, with --again all of --parts. Prints a table in Markdown. Exit code 1:
some part is not "ok"; 2: nothing was begun.

Without a GPU: --size debug (the default there) runs the same parts on a CPU in a few minutes; its figures say
nothing about a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.benchmarks.gpu_parts.catalog import PARTS
from experiments.benchmarks.gpu_parts.sizes import SIZES
from experiments.benchmarks.gpu_parts.tables import table
from experiments.benchmarks.harness import facts
from experiments.errors import CHECK_FAILED, one_line_errors
from experiments.runs.provenance import CODE_ROOT, git_state
from pretrain.files import locked, read_json, write_json

LOOK_S = 0.2  # between two looks at a part's process
LOG_LINES = 15  # of a part that failed, kept
SAME = ("size", "device", "hardware", "gpu_gib", "torch", "torchtitan", "diffusers")  # of a file that goes on


class Deadline(NamedTuple):
    """Until when, by time.monotonic(), all parts together may run."""

    end: float

    def left(self) -> float:
        return self.end - time.monotonic()


def described(size: str, device: str) -> dict[str, Any]:
    """What figures belong to. Raises ValueError for a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device cuda: torch {torch.__version__} sees no GPU here; --device cpu --size debug runs all "
            "parts small"
        )
    found = facts("torchtitan", "diffusers", device=torch.device(device)) | {"size": size, "device": device}
    del found["threads"]  # of this process, which computes nothing
    if device == "cuda":
        found["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return found


def earlier(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What the file holds of parts, under today's description. Raises ValueError for figures of another
    kind."""
    if not path.exists():
        return {**now, "parts": {}}
    before = read_json(path, "name another file")
    if not isinstance(before.get("parts"), dict):
        raise ValueError(f"{path}: not a file of this command; name another one")
    for name in SAME:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{path}: its {name} is {before.get(name)}, here it is {now.get(name)}; name another file"
            )
    return {**now, "parts": {name: part for name, part in before["parts"].items() if name in PARTS}}


def command_of(name: str, size: str, device: str, folder: str) -> list[str]:
    """What measures a part into `folder`."""
    module = f"{__package__}.gpu_parts"
    return [sys.executable, "-m", module, name, "--size", size, "--device", device, "--to", folder]


def run_part(name: str, size: str, device: str, limit_s: float) -> dict[str, Any]:
    """Record of one part, measured by a process that is ended, with all that it started, after `limit_s`."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        record_file, log = Path(folder) / f"{name}.json", Path(folder) / "log.txt"
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        with log.open("w") as file:
            process = subprocess.Popen(
                command_of(name, size, device, folder),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=CODE_ROOT,
                env=environment,
                start_new_session=True,
            )
            try:
                code = _watched(process, record_file, begin + limit_s)
            finally:
                _end(process)
        record = _read(record_file)
        tail = _last_lines(log)
    if code is None:
        record |= {"status": "timed out", "reason": f"not done after its limit of {limit_s:.0f} s"}
    elif record["status"] == "running":
        record |= {"status": "failed", "reason": _reason_of_exit(code, tail)}
    record |= {"date": datetime.date.today().isoformat(), "commit": _commit()}
    record["seconds"] = round(time.monotonic() - begin, 1)
    return record if record["status"] in ("ok", "skipped") else {**record, "log": tail}


def _watched(process: subprocess.Popen[bytes], record_file: Path, end: float) -> int | None:
    """Exit code, None at the limit; prints findings as they come."""
    told = 0
    while True:
        code = process.poll()
        words = _read(record_file)["words"]
        for line in words[told:]:
            print(f"  {line}", file=sys.stderr, flush=True)
        told = len(words)
        if code is not None or time.monotonic() > end:
            return code
        time.sleep(LOOK_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started (compilers), which are a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(record_file: Path) -> dict[str, Any]:
    if not record_file.is_file():
        return {"status": "running", "reason": "", "words": [], "figures": {}}
    return json.loads(record_file.read_text(encoding="utf-8"))


def _last_lines(log: Path) -> list[str]:
    """Without the machine's own paths."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for place in (CODE_ROOT, Path(sysconfig.get_path("purelib"))):
        text = text.replace(f"{place}/", "")
    return [line for line in text.splitlines() if line.strip()][-LOG_LINES:]


def _reason_of_exit(code: int, tail: list[str]) -> str:
    last = tail[-1].strip() if tail else "it said nothing"
    if code == -signal.SIGKILL:
        return "killed by the system (signal 9), as where the host's memory is used up"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}: {last}"[:300]
    return f"ended with exit code {code}: {last}"[:300]


def _commit() -> str:
    state = git_state(CODE_ROOT)
    return state.commit and state.commit[:12] + (" and changes" if state.dirty else "")


def is_ok(found: dict[str, Any], name: str) -> bool:
    """Whether the file has figures of that part, within their bounds."""
    return found["parts"].get(name, {}).get("status") == "ok"


def measure_all(found: dict[str, Any], due: list[str], path: Path, deadline: Deadline) -> None:
    """Records of the parts `due` into `found` and the file, until the deadline."""
    for place, name in enumerate(due, start=1):
        limit_s = min(PARTS[name].limit_s, deadline.left())
        if limit_s < 1:
            reason = "no time left; the same command goes on with it"
            found["parts"].setdefault(
                name, {"status": "skipped", "reason": reason, "seconds": 0.0, "words": []}
            )
            continue
        print(
            f"{place}/{len(due)} {name}: {PARTS[name].what}; at most {limit_s:.0f} s, "
            f"{deadline.left():.0f} s left for all",
            file=sys.stderr,
            flush=True,
        )
        found["parts"][name] = record = run_part(name, found["size"], found["device"], limit_s)
        found["parts"] = {each: found["parts"][each] for each in PARTS if each in found["parts"]}
        write_json(path, found, indent=1)
        print(f"  {record['status']} {record['reason']} ({record['seconds']} s)", file=sys.stderr, flush=True)
    write_json(path, found, indent=1)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Raises SystemExit(2) for what is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.gpu_hour",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = "; ".join(f"{name}: {part.what}, at most {part.limit_s} s" for name, part in PARTS.items())
    gpu = torch.cuda.is_available()
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="JSON of all parts")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=listed
    )
    parser.add_argument(
        "--size",
        choices=list(SIZES),
        default="full" if gpu else "debug",
        help="full: nava_6b, 145 frames of 1280x704, for 141 GB; block: two of its blocks, for smaller "
        "GPUs; debug: anywhere (default here: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if gpu else "cpu",
        help="default here: %(default)s",
    )
    parser.add_argument("--again", action="store_true", help="measure the parts that are ok too")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    with one_line_errors():
        if not options.minutes > 0:
            raise ValueError(f"--minutes must be above 0, got {options.minutes:g}")
        if options.to.is_dir():
            raise ValueError(f"--to {options.to}: a folder; name a file for the JSON")
        deadline = Deadline(time.monotonic() + 60 * options.minutes)
        lock = options.to.with_name(f".{options.to.name}.lock")
        with locked(lock, f"{options.to}: another command is measuring into it; wait or name another file"):
            found = earlier(options.to, described(options.size, options.device))
            names = [name for name in PARTS if name in options.parts]
            due = [name for name in names if options.again or not is_ok(found, name)]
            measure_all(found, due, options.to, deadline)
        print(table(found))
        print(f"\nwrote {options.to}")
    return 0 if all(is_ok(found, name) for name in names) else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
