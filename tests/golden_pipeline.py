"""Runs the whole pipeline at debug size and prints digests of all that it makes, to check a refactoring.

    python tests/golden_pipeline.py [--work FOLDER] [--only STEP ...] [--check]

It drives the command line in subprocesses and reads the files that come out, so that it knows no module
that may move. One rank, one thread, no GPU. The numbers are those of one kind of processor and one torch: the
first line of the golden file names them. A step that has run in the folder is not run again. --check compares
with tests/golden/pipeline.txt: exit code 1 and a diff where it differs.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from golden_digest import lines_of

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"
EXPECTED = GOLDEN / "pipeline.txt"
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA", "VECLIB_MAXIMUM")
FOREIGN = ("CUDA_", "MLFLOW_", "NAVA_", "PET_", "DVC_", "RAY_")  # of an environment, that would change a run
HEARD = "intelligibility_pocketsphinx wer_pocketsphinx sim_resemblyzer snr_estimate_db"
SEEN = "sync_mini sync_judge lip_loudness_correlation picture_noise_judge"
PICTURES = ("contact_sheet", "losses", "before_after", "alignment")
FITTED = "sync_mini intelligibility_pocketsphinx"


@dataclass(frozen=True)
class Step:
    """Arguments of `python -m`, and the files and folders it makes; `said`: a file for what it prints."""

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    said: str = ""


def stage(name: str, *outputs: str) -> Step:
    return Step(name, ("experiments.stages", name), outputs)


def nava(name: str, line: str, *outputs: str, said: str = "") -> Step:
    return Step(name, ("experiments.cli", *line.split()), outputs, said)


def steps() -> list[Step]:
    """In the order they run."""
    scored = f"score out/generated/pretrain_seen --out scores.jsonl --limit 4 --json --rewards {HEARD} {SEEN}"
    fitted = f"gsb fit out/votes/votes.jsonl --scores out/chosen/scores.jsonl --json --features {FITTED}"
    return [
        stage("corpus", "out/corpus"),
        stage("curate", "out/curated"),
        stage("codec", "out/codec"),
        stage("encode", "out/latents"),
        nava("pretrain", "pretrain mini --nproc 1", "out/pretrain"),
        stage("syncnet", "out/syncnet"),
        stage("generate", "out/generated"),
        stage("rollout", "out/rollouts"),
        stage("curate_prompts", "out/chosen"),
        stage("votes", "out/votes"),
        nava("align", "align mini --nproc 1", "out/align"),
        stage("generate_aligned", "out/aligned"),
        stage("score", "out/scores"),
        stage("evaluate", "reports/demo.json", "reports/alignment.json", "out/gsb"),
        stage("report", "reports/demo.html", *(f"reports/{name}.png" for name in PICTURES)),
        nava("nava_score", f"{scored} --rubric {GOLDEN / 'rubric.yaml'}", "scores.jsonl", said="score.json"),
        nava("gsb_stats", "gsb stats out/gsb/votes.jsonl --json", said="gsb_stats.json"),
        nava("gsb_fit", fitted, "preference.json"),
        nava("plan_mini", "plan mini --gpus 2 --json", said="plan_mini.json"),
        nava("plan_nava_6b", "plan nava_6b --gpus 128 --json", said="plan_nava_6b.json"),
    ]


def without_sender(work: Path) -> object:
    """A lock that, as long as it is held, lets the processes which send runs to MLflow end at once."""
    spool = work / "out" / "tracking"
    spool.mkdir(parents=True, exist_ok=True)
    lock = (spool / "sender.lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    threads = {f"{name}_NUM_THREADS": "1" for name in THREADS}
    fixed = {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **threads, **fixed}


def run(step: Step, work: Path, cores: set[int]) -> None:
    """To its end, or SystemExit with the end of its log; cut short, it takes its process with it."""
    os.sched_setaffinity(0, {idlest(cores)})  # torchrun gives its ranks as many threads as there are cores
    log, printed = work / "done" / f"{step.name}.log", work / (step.said or f"done/{step.name}.out")
    clock, before = time.monotonic(), os.times()
    with log.open("w") as errors, printed.open("w") as answers:
        process = subprocess.Popen(
            [sys.executable, "-m", *step.command],
            cwd=work,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=errors,
            preexec_fn=_end_with_parent,
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise SystemExit(f"{step.name}: exit code {code}\n" + "\n".join(log.read_text().splitlines()[-30:]))
    (work / "done" / step.name).touch()
    busy = sum(os.times()[2:4]) - sum(before[2:4])  # of processes that were waited for
    print(f"{step.name}: {time.monotonic() - clock:.1f} s, {busy:.1f} s of a core", file=sys.stderr)


def idlest(cores: set[int], seconds: float = 0.2) -> int:
    """The core that was least busy just now."""
    before = _idle_ticks()
    time.sleep(seconds)
    after = _idle_ticks()
    return max(cores, key=lambda core: after[core] - before[core])


def _idle_ticks() -> dict[int, int]:
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
    return {int(row[0][3:]): int(row[4]) for row in rows if row[0] != "cpu"}


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def digests(step: Step, work: Path) -> Iterator[str]:
    yield f"[{step.name}]"
    for output in step.outputs:
        yield from lines_of(work / output, work)
    if step.said:
        yield from lines_of(work / step.said, work)


def machine() -> str:
    """What the numbers depend on beside the code."""
    found = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].split() for line in found}
    flags = [flag for flag in FLAGS if flag in {*facts.get("flags", ()), *facts.get("Features", ())}]
    vendor = " ".join(facts.get("vendor_id", [platform.machine()]))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"# {vendor} {' '.join(flags)}; {packages}, Python {platform.python_version()}"


def compare(found: Sequence[str], names: Sequence[str]) -> int:
    """0, or 1 with a diff; only of the sections in `names`."""
    first, *expected = EXPECTED.read_text().splitlines()
    if first != machine():
        print(
            f"warning: numbers may differ, this machine is another\n  {first}\n  {machine()}", file=sys.stderr
        )
    sections: dict[str, list[str]] = {}
    for line in expected:
        sections.setdefault(line.strip("[]") if line.startswith("[") else list(sections)[-1], []).append(line)
    wanted = [line for name in names for line in sections.get(name, ())]
    name = str(EXPECTED.relative_to(REPOSITORY))
    diff = list(difflib.unified_diff(wanted, found, name, "this run", lineterm="", n=0))
    print("\n".join(diff) if diff else f"{len(found)} lines as in {name}")
    return 1 if diff else 0


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    names = [step.name for step in steps()]
    parser.add_argument("--work", type=Path, help="where it runs; a temporary folder where not given")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--check", action="store_true", help="compare with the golden file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [step for step in steps() if not arguments.only or step.name in arguments.only]
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        work = (arguments.work or Path(temporary)).absolute()
        (work / "done").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GOLDEN / "params.yaml", work / "params.yaml")
        lock, cores = without_sender(work), os.sched_getaffinity(0)
        found = []
        for step in chosen:
            if not (work / "done" / step.name).exists():
                run(step, work, cores)
            lines = list(digests(step, work))
            found += lines
            if not arguments.check:
                print("\n".join([machine(), *lines] if step is chosen[0] else lines), flush=True)
        del lock
    return compare(found, [step.name for step in chosen]) if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
