"""What this machine is, what it can do per second, and what is missing for the commands of this
repository."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "asimdbf16")
# distribution name -> (module, the way to get it). Optional ones are named by `extras`.
NEEDED = {
    "torch": "torch",
    "torchtitan": "torchtitan",
    "triton": "triton",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "mlflow": "mlflow",
    "dvc": "dvc",
    "submodlib-py": "submodlib",
    "jiwer": "jiwer",
    "pocketsphinx": "pocketsphinx",
    "resemblyzer": "resemblyzer",
    "webrtcvad-wheels": "webrtcvad",
    "librosa": "librosa",
    "soundfile": "soundfile",
    "av": "av",
    "tyro": "tyro",
    "rich": "rich",
    "safetensors": "safetensors",
}
EXTRAS = {"trl": "align", "peft": "align", "ray": "serve", "pytest": "dev", "hypothesis": "dev"}
DEMO_DISK_GIB = 3.0
DEMO_MEMORY_GIB = 6.0
MATMUL_SIZE = 2048


def examine() -> dict[str, Any]:
    """The report of `nava doctor` as plain values; `missing` lists what is missing and how to get it."""
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path())
    versions = {name: _version(name) for name in (*NEEDED, *EXTRAS)}
    flags = processor_flags()
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": num_cores(),
        "bf16_flags": [flag for flag in BF16_FLAGS if flag in flags],
        "memory_gib": {
            "total": round(memory.total / 2**30, 1),
            "available": round(memory.available / 2**30, 1),
        },
        "disk_free_gib": round(disk.free / 2**30, 1),
        "versions": versions,
    }
    if versions["torch"]:
        import torch

        report["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        report["matmul_gflops"] = {
            name: round(peak_matmul_gflops(getattr(torch, name))) for name in ("bfloat16", "float32")
        }
    report["missing"] = _missing(versions, report)
    return report


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _missing(versions: dict[str, str], report: dict[str, Any]) -> list[str]:
    missing = []
    if not (3, 11) <= sys.version_info < (3, 13):
        missing.append(
            f"Python 3.11 or 3.12, this is {report['python']}: make clean-venv, then make "
            "PYTHON=/path/to/python3.11 setup"
        )
    for name, module in NEEDED.items():
        if not versions[name] or importlib.util.find_spec(module) is None:
            how = "pip install --no-deps resemblyzer==0.1.4" if name == "resemblyzer" else "make setup"
            missing.append(f"{name}: {how}")
    missing += [problem] if (problem := repository_problem(Path())) else []
    if report["disk_free_gib"] < DEMO_DISK_GIB:
        missing.append(
            f"disk: {report['disk_free_gib']} GiB free here, the demo wants {DEMO_DISK_GIB}: free some"
        )
    if report["memory_gib"]["available"] < DEMO_MEMORY_GIB:
        missing.append(
            f"memory: {report['memory_gib']['available']} GiB available, the demo may want "
            f"{DEMO_MEMORY_GIB}: close something"
        )
    return missing


def repository_problem(root: Path) -> str:
    """What keeps DVC from working in `root`, with the way out; "" where nothing does."""
    remedy = "git init && git add -A && git commit -m start, or: dvc config core.no_scm true"
    if _without_git(root):
        return ""
    if shutil.which("git") is None:
        return "git: not installed, and DVC asks it: install git, or: dvc config core.no_scm true"
    command = ["git", "rev-parse", "--show-toplevel"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if found.returncode == 0:
        return ""
    reason = found.stderr.strip().splitlines()[0] if found.stderr.strip() else "no git repository"
    return f"git repository: none that can be used here ({reason}): {remedy}"


def _without_git(root: Path) -> bool:
    """DVC was told to work without version control."""
    settings = configparser.ConfigParser()
    for name in ("config", "config.local"):
        with contextlib.suppress(configparser.Error):
            settings.read(root / ".dvc" / name)
    return settings.get("core", "no_scm", fallback="false").strip().lower() == "true"


def processor_flags() -> set[str]:
    """Feature flags of the processor as Linux names them; empty where the system has no such file."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def peak_matmul_gflops(dtype: Any, seconds: float = 1.0) -> float:
    """Best rate of a square matrix product on the CPU with all of torch's threads, in GFLOP/s, from about
    `seconds` of trying."""
    import torch

    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype) for _ in range(2))
    result = torch.mm(left, right)  # the first call packs and picks a kernel
    best_s, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=result)
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * MATMUL_SIZE**3 / best_s / 1e9 if best_s < float("inf") else 0.0


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    print(f"Python {report['python']} on {report['platform']}")
    flags = ", ".join(report["bf16_flags"]) or "no bf16 instructions"
    print(f"{report['processor']}, {report['cores']} cores, {flags}")
    if "matmul_gflops" in report:
        speed, gpus = report["matmul_gflops"], ", ".join(report["gpus"]) or "none"
        rates = f"{speed['bfloat16']} GFLOP/s in bf16, {speed['float32']} in fp32"
        print(f"peak matmul throughput: {rates}; GPUs: {gpus}")
    memory = report["memory_gib"]
    print(
        f"memory {memory['available']} of {memory['total']} GiB available; disk {report['disk_free_gib']} "
        "GiB free here"
    )
    print(
        "packages: "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    )
    absent = [f"{name} (pip install -e '.[{extra}]')" for name, extra in EXTRAS.items()]
    if absent := [line for line in absent if not report["versions"][line.split()[0]]]:
        print("not installed, and not needed for the demo: " + ", ".join(absent))
    print("missing:" + ("".join(f"\n  {line}" for line in report["missing"]) or " nothing"))
