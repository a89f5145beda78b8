"""What is wrong with a media file, in one line."""

from __future__ import annotations


class MediaError(ValueError):
    """A file that cannot be used; the message is one line: path, what was found, what to do."""


class MissingMediaError(MediaError, FileNotFoundError):
    """There is no such file."""

    def __str__(self) -> str:  # OSError would print a tuple of its arguments
        return str(self.args[0])
