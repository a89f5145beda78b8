"""Valid files with damage, and processes of limited memory that read them.

`python fuzzing.py MEMORY_BYTES` is such a process: a path a line in, a JSON line out (`outcome`: read,
refused or crashed, with the exception).
"""

from __future__ import annotations

import json
import resource
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

MIB = 1 << 20
DECODED_BYTES, PIXELS = 256 * MIB, 4 * MIB
HANG_S = 10.0
HEADER_BYTES = 2048
EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\x00\x00\x00\x01", b"\x80\x00\x00\x00")


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """The file with one to four kinds of damage, in its header half of the time."""
    damaged = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        if len(damaged) < 16:
            break
        size = min(len(damaged), HEADER_BYTES) if generator.random() < 0.5 else len(damaged)
        at = int(generator.integers(0, size - 8))
        length = int(min(2 ** generator.integers(0, 12), len(damaged) - at))
        match generator.integers(0, 8):
            case 0:
                damaged[at] ^= 1 << int(generator.integers(0, 8))
            case 1:
                damaged[at : at + length] = generator.bytes(length)
            case 2:
                damaged[at : at + 4] = EXTREMES[generator.integers(0, len(EXTREMES))]
            case 3:
                damaged[at : at + length] = bytes(length)
            case 4:
                del damaged[at : at + length]
            case 5:
                damaged[at:at] = damaged[at : at + length]
            case 6:
                damaged[at:at] = generator.bytes(length)
            case 7:
                del damaged[max(16, int(generator.integers(0, len(damaged)))) :]
    return bytes(damaged)


@dataclass(frozen=True)
class Answer:
    """What a process made of a file; `said` is the message or the exception."""

    outcome: str  # read, refused, crashed, died, hung
    said: str = ""
    seconds: float = 0.0
    peak_mib: int = 0


class LimitedReader:
    """A process that reads files; one that dies or hangs is replaced."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> Answer:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        started = time.monotonic()
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        if not self._answers(process):
            self.close()
            return Answer("hung", seconds=time.monotonic() - started)
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            return Answer("died", f"exit {code}")
        found = json.loads(line)
        return Answer(found["outcome"], found["said"], time.monotonic() - started, found["peak_mib"])

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """False for one that computes for HANG_S seconds, or does nothing for much longer."""
        assert process.stdout
        running, started = psutil.Process(process.pid), time.monotonic()
        spent = sum(running.cpu_times()[:2])
        while not select.select([process.stdout], [], [], 0.5)[0]:
            if sum(running.cpu_times()[:2]) - spent > HANG_S or time.monotonic() - started > 6 * HANG_S:
                return False
        return True

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, str(self.memory_bytes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"
        return self._process

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(memory_bytes: int) -> None:
    """Reads what it is asked for until its input ends; address space above today's is limited."""
    from av import logging
    from PIL import Image

    from pretrain.media.errors import MediaError
    from pretrain.media.limits import MediaLimits
    from pretrain.media.read import probe, read_media

    logging.set_level(logging.PANIC)
    Image.init()
    limits = MediaLimits(pixels=PIXELS, frames=2000, seconds=120, decoded_bytes=DECODED_BYTES)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    print("ready", flush=True)
    for line in sys.stdin:
        path, outcome, said = Path(line.rstrip("\n")), "read", ""
        try:
            probe(path, limits)
            read_media(path, fps=None, want_video=None, want_audio=None, limits=limits)
        except MediaError as error:
            outcome, said = "refused", str(error)
        except BaseException as error:
            outcome, said = "crashed", repr(error)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"outcome": outcome, "said": said, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    serve(int(sys.argv[1]))
