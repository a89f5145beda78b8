"""Pool of decoding processes (`decode_worker`); a process that is too slow or dies is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from orchestration.service.decode import Decoded, DecodeJob
from orchestration.service.decode_worker import TOO_LONG, read_message, write_message
from orchestration.service.fair import ANYONE, Caller, FairBytes, FairSlots
from orchestration.service.limits import MIB, Limits, Refusal

START_SECONDS = 120.0  # on a busy machine
TRIES = 2
STARVED = 4  # seconds for each of a processor: what takes long to decode gets little of a busy machine
NICER = 5
GUESTS = 1  # a process more, for a token that has none at work while others' files take long
DTYPES = {"uint8": np.uint8, "float32": np.float32}


class Decoders:
    """`limits.decoders` processes, shared fairly by callers; `close` ends them.

    All decoded clips take at most `limits.held_bytes`, those of one token at most half of it.
    """

    def __init__(self, limits: Limits, roots: Sequence[Path]) -> None:
        self.limits, self.roots = limits, [str(root) for root in roots]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._spare: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._lock, self._spares = threading.Lock(), 0
        self._slots = FairSlots(limits.decoders, GUESTS)
        for _ in range(limits.decoders):
            self._idle.put(_Process())  # started early: importing takes a second
        self._threads = ThreadPoolExecutor(limits.decoders + GUESTS, thread_name_prefix="decode")
        self.bytes = FairBytes(limits.held_bytes)

    @asynccontextmanager
    async def decoded(
        self, job: DecodeJob, uploads: Path | None = None, caller: Caller = ANYONE
    ) -> AsyncIterator[Decoded]:
        """Decodes `job` with `uploads`. Raises Refusal; 422 where a file kills or stalls the process."""
        roots = [*self.roots, *([str(uploads)] if uploads else [])]
        message = {
            "job": dataclasses.asdict(job),
            "roots": roots,
            "limits": dataclasses.asdict(self.limits),
        }
        kept = 0
        try:
            async with self._slots.slot(caller):
                kept = most = await self.bytes.take(self.limits.decoded_bytes, caller.token)
                result = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, message)
            kept = sum(array.nbytes for array in result.arrays.values())
            self.bytes.give_back(most - kept, caller.token)
            yield result
        finally:
            self.bytes.give_back(kept, caller.token)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for processes in (self._idle, self._spare):
            while not processes.empty():
                processes.get().end()

    def _take(self) -> _Process:
        """An idle process, or a spare one for a guest. There are never more than slots."""
        for processes in (self._idle, self._spare):
            with contextlib.suppress(queue.Empty):
                return processes.get_nowait()
        with self._lock:
            self._spares += 1
        return _Process()

    def _start_spare(self) -> None:
        """After the first clip, so that it delays no start and is there before a guest needs it."""
        with self._lock:
            if self._spares < GUESTS:
                self._spares += 1
                self._spare.put(_Process())

    def _ask(self, message: dict[str, Any]) -> Decoded:
        """One dead process does not prove the file bad (it may be killed otherwise); two do."""
        reason = ""
        for _ in range(TRIES):
            process = self._take()
            try:
                with _killed_after(START_SECONDS, process):
                    process.wait_until_ready()
                with _killed_after(STARVED * self.limits.decode_seconds + 1.0, process):
                    answer = _answer_of(process.ask(message, self.limits.decoded_bytes))
                self._start_spare()
                return answer
            except Refusal:
                raise
            except Exception:  # whatever a process does that a file may have taken over
                too_long = process.killed or process.took_too_long()
                process.kill()
                if too_long:
                    reason = f"takes more than {self.limits.decode_seconds:g} s to decode"
                    break
                reason = "cannot be decoded; the decoder died of it"
            finally:
                if process.killed:
                    process.end()
                    process = _Process()
                self._idle.put(process)
        raise Refusal(422, f"clip: {reason}; encode it as h264 and AAC", "clip")


@contextmanager
def _killed_after(seconds: float, process: _Process) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be killing right now: wait, so that `killed` is final


def _answer_of(result: tuple[dict[str, Any], dict[str, np.ndarray]]) -> Decoded:
    header, arrays = result
    if "refusal" in header:
        status, reason, fault = header["refusal"]
        raise Refusal(status, reason, fault)
    mended = {str(name): float(amount) for name, amount in header["mended"].items()}
    return Decoded(arrays, header["fps"], header["sample_rate_hz"], mended)


class _Process:
    """In a group of its own, so that its fork can be killed with it."""

    def __init__(self) -> None:
        # Nothing of the service's environment: it may hold secrets, and what decodes may be taken over by a
        # file.
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG") if key in os.environ}
        environment = kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.service.decode_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # 64 KiB at a time keep this process busy with half a gigabyte
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, MIB)
        with contextlib.suppress(OSError):  # clips that take long to decode slow down nothing else
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICER)
        self.killed, self._ready = False, False

    def wait_until_ready(self) -> None:
        """What it imports is in memory. Raises EOFError or ValueError where it did not start."""
        assert self._process.stdout is not None
        if not self._ready and read_message(self._process.stdout) != {"ready": True}:
            raise EOFError
        self._ready = True

    def ask(self, message: dict[str, Any], most: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(header, arrays up to `most` bytes). Raises OSError, EOFError, KeyError, TypeError, ValueError."""
        sink, source = self._process.stdin, self._process.stdout
        assert sink is not None and source is not None
        write_message(sink, message)
        sink.flush()
        if (header := read_message(source)) is None:
            raise EOFError
        # untrusted too: a file may have taken over the decoder
        table = header.get("arrays", [])
        sizes = [math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize for entry in table]
        if sum(sizes) > most or min(sizes, default=0) < 0:
            raise ValueError("more than a clip may have")
        arrays = {}
        for entry, size in zip(table, sizes, strict=True):
            content = np.empty(size, np.uint8)  # zeros would hold the interpreter's lock for half a second
            if source.readinto(content) != size:  # type: ignore[attr-defined]
                raise EOFError
            arrays[entry["name"]] = content.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return header, arrays

    def took_too_long(self) -> bool:
        """It ended since the file took more of a processor than `decode_seconds`."""
        try:
            return self._process.wait(1.0) == TOO_LONG
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        self.killed = True
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)

    def end(self) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not written is lost with the process
                stream.close()  # type: ignore[union-attr]
        self._process.wait()
