"""The process that a run lasts as long as: who it is, and whether it is gone, seen from any machine.

`owner.json` in a run's spool folder names it by machine, boot, space of process numbers (a container has its
own) and start in ticks since boot, which no clock moves. Only where all of these are the reader's own does a
process number say anything. Of another machine or container a run is known by its signs: it touches the file
every minute, and one that was silent for hours is abandoned.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from pretrain.files import is_running, replacing

OWNER = "owner.json"
SIGNS = (OWNER, "events.jsonl")  # files that a run at work writes or touches
LOOK = "silent.json"  # what a reader of another machine saw last of a silent run
BEAT_S = 60.0
SILENT_S = 2 * 3600.0
# between two looks at a silent run, so that none is ended when a disk that was gone for hours is back
BETWEEN_LOOKS_S = 600.0
_ended: dict[Path, threading.Event] = {}  # spool folders of the runs that this process keeps giving signs of


def hold(folder: Path, pid: int = 0, above: str = "") -> None:
    """Make a process (default this one) the owner of a run, and give signs of it until `let_go`.

    pid: of another process, whose run ends as its children do. above: key of the run's invocation, which
    lives while its runs do. Raises OSError where the folder cannot be written.
    """
    _be_silent(folder)
    owner: dict[str, Any] = {"pid": pid or os.getpid(), "time_s": time.time(), **_place()}
    owner |= {"began": _began(owner["pid"]), **({"waits": True} if pid else {})}
    with replacing(folder / OWNER) as partial:
        partial.write_text(json.dumps(owner))
    if pid:  # its runs give signs of it
        return
    folder, ended = folder.absolute(), threading.Event()
    files = [folder / OWNER, *([folder.parent / above / OWNER] if above else [])]
    _ended[folder] = ended
    threading.Thread(target=_beat, args=(files, ended), name="run-signs", daemon=True).start()


def let_go(folder: Path) -> None:
    """A run has ended. Raises OSError where its folder cannot be written."""
    _be_silent(folder)
    for name in (OWNER, LOOK):
        (folder / name).unlink(missing_ok=True)


def _be_silent(folder: Path) -> None:
    if ended := _ended.pop(folder.absolute(), None):
        ended.set()


def _beat(files: Iterable[Path], ended: threading.Event) -> None:
    own, *above = files
    while not ended.wait(BEAT_S):
        for path in above:
            with suppress(OSError):
                os.utime(path)
        try:
            os.utime(own)
        except FileNotFoundError:  # ended, or removed
            return
        except OSError:  # a shared disk that is gone for a while
            continue


def owner_in(folder: Path) -> dict[str, Any]:
    """{pid, time_s, host, boot, space, began, waits} of a run's folder, those of earlier versions without
    what follows time_s; empty for a run that has ended, or was killed while it wrote."""
    try:
        found = json.loads((folder / OWNER).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def runs_here(owner: Mapping[str, Any]) -> bool | None:
    """Whether the owner is alive; None for one of another machine or container, which cannot be seen."""
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return False
    if "host" not in owner:
        return _earlier_version_runs(pid, owner.get("time_s", 0.0))
    if any(owner.get(name) != value for name, value in _place().items()):
        return None
    return _began(pid) == owner.get("began")


def _earlier_version_runs(pid: int, time_s: float) -> bool:
    try:
        # a process that started later has reused the number
        return psutil.Process(pid).create_time() <= time_s
    except (psutil.NoSuchProcess, ValueError):
        return False


@lru_cache(maxsize=1)
def _place() -> dict[str, str]:
    """Where process numbers mean the same as here."""
    found = {"host": socket.gethostname(), "boot": "", "space": ""}
    with suppress(OSError):  # not Linux
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["space"] = str(Path("/proc/self/ns/pid").readlink())
    return found


def _began(pid: int) -> float | None:
    """When a process began, in ticks since boot (not on Linux: as psutil says); None without the process.

    0 where it may not be looked at. A process that nobody waits for counts as none.
    """
    try:
        # the name, in brackets, may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else float(fields[18])
    except (OSError, ValueError, IndexError):
        if not is_running(pid):
            return None
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return 0.0


def _last_sign_ns(folder: Path) -> int:
    return max((folder / name).stat().st_mtime_ns for name in SIGNS)


def silence(folder: Path) -> str:
    """Of a run that `silent_since` has found silent once: what is known and what follows; else ""."""
    owner = owner_in(folder)
    try:
        sign_ns = _last_sign_ns(folder)
        if runs_here(owner) is not None or (folder / LOOK).read_text() != str(sign_ns):
            return ""
    except OSError:  # it has ended, or was never silent
        return ""
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(sign_ns / 1e9))
    return (
        f"process {owner['pid']} of {owner['host']} has given no sign since {since}; where it stays silent, "
        f"a call in {BETWEEN_LOOKS_S / 60:.0f} minutes ends the run as KILLED"
    )


def silent_since(folder: Path) -> float:
    """Seconds since 1970 since which nothing has been seen of a run on another machine; 0 while it may be at
    work: seen within SILENT_S, or since an earlier call that is at least BETWEEN_LOOKS_S ago.

    All times are the disk's, which the runs of all machines share.
    """
    try:
        sign_ns = _last_sign_ns(folder)
        with tempfile.TemporaryFile(dir=folder) as clock:
            now_ns = os.fstat(clock.fileno()).st_mtime_ns
        # a sign of a clock that was ahead is as good as an old one
        if abs(now_ns - sign_ns) < SILENT_S * 1e9:
            return 0.0
        look = folder / LOOK
        if not look.is_file() or look.read_text() != str(sign_ns):
            with replacing(look) as partial:
                partial.write_text(str(sign_ns))
            return 0.0
        return sign_ns / 1e9 if now_ns - look.stat().st_mtime_ns >= BETWEEN_LOOKS_S * 1e9 else 0.0
    except (OSError, ValueError):  # ended meanwhile, or a folder that cannot be written
        return 0.0
