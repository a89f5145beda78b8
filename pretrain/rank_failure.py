"""Which rank died and what is left, from torchrun's failure record, in one line."""

from __future__ import annotations

import json
import re
import signal
from contextlib import suppress
from pathlib import Path

from pretrain.storage import place

ATTEMPT = "-- torchrun starts --"
_RECORD = re.compile(
    r"host\s*: (?P<host>\S+)\s+rank\s*: (?P<rank>\d+) \(local_rank: \d+\)\s+"
    r"exitcode\s*: -(?P<signal>\d+) \(pid: (?P<pid>\d+)\)"
)
_ENDED = re.compile(r"Sending process (\d+) closing signal")
_HINTS = {"SIGKILL": "by the system for want of memory, or from outside", "SIGSEGV": "by a fault in native code"}


def dead_rank(log: str) -> str:
    """Who was killed by which signal by the last attempt's failure record in `log`; "" where no rank was.

    Ranks that torchrun itself ended because of another's death are not meant.
    """
    attempt = log.rpartition(ATTEMPT)[2]
    ended = set(_ENDED.findall(attempt))
    killed = [found for found in _RECORD.finditer(attempt.rpartition("\nFailures:")[2]) if found["pid"] not in ended]
    if not killed:
        return ""
    number = int(killed[0]["signal"])
    name = signal.Signals(number).name if number in {item.value for item in signal.Signals} else f"signal {number}"
    hint = f" ({_HINTS[name]})" if name in _HINTS else ""
    return f"rank {killed[0]['rank']} on {killed[0]['host']} was killed by {name}{hint}"


def newest_state(resolved: Path) -> str:
    """What can be resumed of the run described by resolved.json, in words."""
    from pretrain.titan.checkpoints import complete_steps  # heavy

    folder = resolved.parent / "checkpoint"
    with suppress(OSError, ValueError):
        folder = place(json.loads(resolved.read_text()).get("checkpoints") or folder)
        steps = complete_steps(folder)
        return f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was complete"
    return f"{folder}: its checkpoints could not be listed"
