"""A GPU that has no room, in one line: what was asked for and free, where, and what would fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

GIB = 2**30
PACKAGES = ("pretrain", "finetune", "orchestration", "experiments")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}
_SIZE = r"(\d+(?:\.\d+)?) (bytes|[KMGT]iB)"


@dataclass(frozen=True)
class Shortage:
    """Bytes by torch's message; 0 = it does not say."""

    asked: int = 0
    free: int = 0
    total: int = 0  # of the device
    unused: int = 0  # reserved by torch's allocator, in pieces that are too small

    @classmethod
    def of(cls, error: BaseException) -> Shortage:
        text = str(error)
        return cls(
            _bytes(rf"Tried to allocate {_SIZE}", text),
            _bytes(rf"of which {_SIZE} (?:is|are) free", text),
            _bytes(rf"total capacity of {_SIZE}", text),
            _bytes(rf"{_SIZE} is reserved by PyTorch but unallocated", text),
        )

    def __str__(self) -> str:
        if not self.asked:
            return "the GPU's memory is taken"
        asked = f"{self.asked / GIB:,.2f} GiB were asked for"
        if not self.total:
            return asked
        return f"{asked}, of the GPU's {self.total / GIB:,.1f} GiB {self.free / GIB:,.2f} are free"

    def ways(self) -> list[str]:
        """What helps against pieces that are free and too small."""
        if not self.asked or self.unused < self.asked:
            return []
        return [
            f"PYTORCH_ALLOC_CONF=expandable_segments:True in the environment ({self.unused / GIB:,.1f} GiB "
            "are reserved in pieces that are too small)"
        ]


@contextmanager
def part(what: str | Callable[[], str]) -> Iterator[None]:
    """Names what is done inside, for `no_room`; of several around each other the inner one counts."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(what if isinstance(what, str) else what())
        raise


def part_of(error: torch.OutOfMemoryError) -> str:
    """What was being done, by the innermost `part`."""
    return next(iter(getattr(error, "__notes__", [])), "the model")


def no_room(
    error: torch.OutOfMemoryError, ways: Sequence[str], prefix: str = "", last: Sequence[str] = ()
) -> ValueError:
    """The error of one line. prefix: who says it, such as "rank 3: "; last: said after the ways.

    Example: no room for the first step: 2.00 GiB were asked for, of the GPU's 79.1 GiB 0.40 are free
    (pretrain/model/attention.py forward); set pretrain.local_batch_size=4 (now 8)
    """
    found, what, place = Shortage.of(error), part_of(error), _place(error.__traceback__)
    said = f"{prefix}no room for {what}: {found}{f' ({place})' if place else ''}"
    return ValueError("; ".join([said, ", or ".join([*ways, *found.ways()]), *last]))


@contextmanager
def in_one_line(ways: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turns a GPU's lack of memory inside into `no_room`'s ValueError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise no_room(error, ways()) from error


def _bytes(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _place(frames: TracebackType | None) -> str:
    """The innermost function of our packages: "pretrain/model/attention.py forward"."""
    found = ""
    while frames is not None:
        code = frames.tb_frame.f_code
        parts = Path(code.co_filename).parts
        known = [place for place, name in enumerate(parts) if name in PACKAGES]
        if known and "site-packages" not in parts:
            found = f"{'/'.join(parts[known[-1] :])} {code.co_name}"
        frames = frames.tb_next
    return found
