"""Drivers of alignments on an embedded Ray, in processes of their own that may be killed, and a look at the
workers they have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestration.config import RayConfig
from pretrain.config import override

TESTS = Path(__file__).resolve().parent
DRIVERS: list[Driver] = []  # all that were started


@pytest.fixture(autouse=True)
def no_driver_outlives_its_test() -> Iterator[None]:
    """For modules that import it."""
    yield
    while DRIVERS:
        DRIVERS.pop().end()


def all_options(options: Mapping[str, Any], rewards: Sequence[str]) -> Mapping[str, Any]:
    """Of the tests' scorer, which scores one reward alone."""
    return options


class Driver:
    """`nava align --ray` without the rest of nava: aligns the run of out/resolved.json on `ranks` ranks."""

    def __init__(self, out: Path, ranks: int = 2, **ray: Any) -> None:
        self.out = out
        self.temporary = tempfile.mkdtemp(
            prefix="nr", dir="/tmp"
        )  # the names of Ray's sockets must stay short
        environment = {
            **os.environ,
            "RAY_TMPDIR": self.temporary,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        }
        command = [
            sys.executable,
            str(TESTS / "ray_world.py"),
            str(out / "resolved.json"),
            str(ranks),
            json.dumps(ray),
        ]
        self.log = (out / "driver.txt").open("a")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        DRIVERS.append(self)

    def wait(self, timeout: float = 300.0) -> int:
        """Its exit code, with everything it started gone."""
        try:
            code = self.process.wait(timeout)
        finally:
            self.end()
        deadline = time.monotonic() + 120
        while left := self.processes():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.2)
        subprocess.run(["rm", "-rf", self.temporary], check=False)
        return code

    def end(self) -> None:
        self.process.kill()
        self.log.close()

    def until(self, found: Callable[[], Any], timeout: float = 200.0) -> Any:
        """The first answer that is not empty. Raises where the driver ends before."""
        deadline = time.monotonic() + timeout
        while not (answer := found()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"driver: {self.process.poll()}, {self.said()[-2000:]}")
            time.sleep(0.02)
        return answer

    def processes(self, title: str = "") -> dict[int, str]:
        """Of this driver's Ray, by their environment, whatever became of their parents; `title` as in
        ray::RolloutWorker.roll_out."""
        found: dict[int, str] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    mine = f"RAY_TMPDIR={self.temporary}".encode() in (folder / "environ").read_bytes()
                    words = (
                        (folder / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                        .strip()
                    )
                except OSError:
                    continue
                if mine and words and title in words:
                    found[int(folder.name)] = words
        return found

    def said(self) -> str:
        return (self.out / "driver.txt").read_text()


def ledger(out: Path) -> list[dict[str, Any]]:
    path = out / "rounds.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.is_file()
        else []
    )


def main(resolved: Path, ranks: int, ray: str) -> int:
    """Exit codes as those of `nava align`: 0 finished, 130 interrupted, 2 with one line of an error."""
    from finetune.align_run import AlignRun
    from orchestration.align import align_on_ray

    try:
        result = align_on_ray(
            AlignRun.load(resolved), ranks, override(RayConfig(), json.loads(ray)), all_options
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result.status)
    return 0 if result.status == "finished" else 130


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
