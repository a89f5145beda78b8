"""The process that decodes: `python -m orchestration.service.decode_worker`. Each request is decoded in a
fork of its own, with little memory, processor time and no files to write; a fork that dies takes this process
with it, and `decoders` starts another.

Protocol: 4 bytes of length, JSON, and after a result the arrays' bytes in the order of its table. The first
message out reports that imports are done. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np

from orchestration.service.decode import Decoded, DecodeJob, array_table, decode_job
from orchestration.service.limits import MIB, Limits, Refusal

LENGTH = struct.Struct("<I")
MAX_MESSAGE_BYTES = MIB
TOO_LONG = 3  # exit code: the file took more of a processor than it may
SHORT_S, NICER = 0.1, 14  # what takes longer to decode yields to what does not
COPIES = 4  # a frame is there as decoded, as an array and in the stack of all


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """None at the end of the stream. Raises ValueError for what is no message."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    if LENGTH.unpack(length)[0] > MAX_MESSAGE_BYTES:
        raise ValueError("a message that is too long")
    return json.loads(stream.read(LENGTH.unpack(length)[0]))


def write_message(stream: IO[bytes], message: dict[str, Any]) -> None:
    content = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(content)) + content)


def main() -> int:
    import scipy.signal  # noqa: F401  (resampling would import it in every fork)
    from PIL import Image  # noqa: F401

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    write_message(sink, {"ready": True})
    sink.flush()
    while (message := read_message(source)) is not None:
        child = os.fork()
        if not child:
            _answer(message, sink)
        _, status = os.waitpid(child, 0)
        if status:
            return TOO_LONG if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else 1
    return 0


def _answer(message: dict[str, Any], sink: IO[bytes]) -> None:
    """Never returns."""
    code = 1
    threading.Timer(SHORT_S, _yield_to_others).start()
    try:
        limits = Limits(**message["limits"])
        _confine(limits)
        answer = Decoded()
        try:
            answer = decode_job(
                DecodeJob(**message["job"]), limits, [Path(root) for root in message["roots"]]
            )
            header = {
                "arrays": array_table(answer.arrays),
                "fps": answer.fps,
                "sample_rate_hz": answer.sample_rate_hz,
                "mended": answer.mended,
            }
        except Refusal as refusal:
            header = {"refusal": [refusal.status, refusal.reason, refusal.fault]}
            answer = Decoded()
        except MemoryError:
            header = {"refusal": [413, "clip: needs too much memory to decode; send a smaller clip", "clip"]}
            answer = Decoded()
        except Exception:  # an unexpected decoder error; only a crash costs the process
            header = {
                "refusal": [422, "clip: not a file that can be decoded; encode it as h264 and AAC", "clip"]
            }
            answer = Decoded()
        write_message(sink, header)
        for array in answer.arrays.values():
            sink.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        sink.flush()
        code = 0
    finally:
        os._exit(code)


def _yield_to_others() -> None:
    """A priority is a thread's own on Linux; threads that start later have their maker's."""
    with contextlib.suppress(OSError):
        nicer = os.getpriority(os.PRIO_PROCESS, 0) + NICER
        for thread in Path("/proc/self/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nicer)


def _confine(limits: Limits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    bounds = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + COPIES * limits.decoded_bytes + 256 * MIB,
        resource.RLIMIT_CPU: int(limits.decode_seconds) + 1,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # pipes are not files
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    sys.exit(main())
