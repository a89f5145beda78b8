"""What a user reads when something is wrong: one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pretrain.config import one_line
from pretrain.terminal import shown

CHECK_FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130
MAX_LINE = 4000  # characters; a file may have anything as the value that an error shows
ADVICE = {
    errno.ENOSPC: "free space and run it again",
    errno.EDQUOT: "free space and run it again",
    errno.EACCES: "give yourself the right to it or name another place",
    errno.EROFS: "name a place that can be written",
}


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """ValueError and OSError become `nava: ...` and exit 2, Ctrl-C exit 130; with `debug` they keep their
    traceback.

    Anything else is a fault of the program and keeps its traceback always.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of `nava ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"nava: {shown(as_line(error))}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt as stop:
        if debug:
            raise
        print(f"nava: {shown(str(stop))}" if str(stop) else "nava: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def as_line(error: Exception) -> str:
    """The message in one line; the operating system's own errors with their file in front."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{one_line(error.filename)}: " if error.filename else ""
        advice = ADVICE.get(error.errno or 0)
        return f"{where}{error.strerror.lower()}" + (f"; {advice}" if advice else "")
    line = one_line(error)
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
