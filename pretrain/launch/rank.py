"""What a rank of torchrun does before anything else: it ends with torchrun, and waits for those before it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pretrain.launch.torchrun import ERROR, LOG, NOT_AGAIN

PATIENCE_S = 120.0  # more than torchrun gives ranks for a last checkpoint
_POLL_S = 0.5
_held: list[int] = []  # open files whose locks end with this process


def begin(out: Path, patience_s: float = PATIENCE_S) -> None:
    """Tie this rank to its torchrun, and let no two groups of ranks write into one folder.

    Linux kills the rank when torchrun is gone, which ends before its ranks only where it was killed itself:
    nothing trains on unattended. Where the command was killed, its ranks write a last checkpoint while it may
    run again already; rank 0 waits for them. Ends the process with a line in error.txt where they do not end,
    and at once where torchrun starts ranks again after an error that says `NOT_AGAIN`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if _is_orphan():  # torchrun was killed while this process imported
        os._exit(3)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and _ends_again(out):
        os._exit(2)
    if os.environ.get("RANK") == "0" and not _hold(out / LOG, patience_s):
        line = f"{out}: ranks of an earlier start are still at work here; end them, then run again"
        (out / f"{ERROR}.0").write_text(line + "\n")
        os._exit(2)


def _ends_again(out: Path) -> bool:
    """An earlier attempt of this torchrun ended with an error that a restart does not mend."""
    return any(path.read_text().rstrip().endswith(NOT_AGAIN) for path in out.glob(f"{ERROR}.*"))


def _is_orphan() -> bool:
    """True for a rank of torchrun whose parent is another process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        return not any("torch" in word for word in psutil.Process(os.getppid()).cmdline())
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def wait_for_ranks(out: Path, patience_s: float = PATIENCE_S) -> None:
    """Wait until no ranks write into a folder, for a command that is about to look at it or to move it.

    Raises ValueError in one line where they do not end.
    """
    with suppress(OSError):
        file = os.open(out / LOG, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _lock(file, 0.0):
                return
            print(f"{out}: waits for the ranks of an earlier start to end", file=sys.stderr, flush=True)
            if _lock(file, patience_s):
                return
        finally:
            os.close(file)
        raise ValueError(f"{out}: ranks of an earlier start are still at work here; end them, then run again")


def _hold(path: Path, patience_s: float) -> bool:
    """Lock a file as long as this process lives; False where another holds it for longer than that."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # started by hand, without a log
        return True
    _held.append(file)
    return _lock(file, patience_s)


def _lock(file: int, patience_s: float) -> bool:
    """Lock an open file, or say that another process holds it for longer than that."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        except OSError:  # a file system without locks
            return True
