"""What is wrong with a media file, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from av.error import FFmpegError

from pretrain.config import one_line

AGAIN = "write the file again or drop its row"


class MediaError(ValueError):
    """A file that cannot be used; the message is one line: path, what was found, what to do."""


class MissingMediaError(MediaError, FileNotFoundError):
    """There is no such file."""

    def __str__(self) -> str:  # OSError would print a tuple of its arguments
        return str(self.args[0])


class MediaLimitError(MediaError):
    """A file is larger, or longer, than its reader's limits."""


class LayoutError(ValueError):
    """A sound's channel layout is unknown."""


@contextmanager
def media_errors(path: Path, what: str = "a media file") -> Iterator[None]:
    """Whatever a library raises on the content of `path` leaves as MediaError.

    Decoders answer to rubbish with errors of any type; all of them are the file's fault.
    """
    try:
        yield
    except MediaError:
        raise
    except LayoutError as error:
        raise MediaError(f"{path}: {error}") from None
    except FFmpegError as error:
        raise MediaError(f"{path}: corrupt or not {what} ({error.strerror}); {AGAIN}") from None
    except MemoryError:
        raise MediaLimitError(f"{path}: needs more memory than there is; cut or shrink it") from None
    except Exception as error:
        found = one_line(error, 160) or type(error).__name__
        raise MediaError(f"{path}: corrupt or not {what} ({found}); {AGAIN}") from None
