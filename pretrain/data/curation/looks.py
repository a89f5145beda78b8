"""Features of clips: by threads where they are few, else by processes, in blocks that a killed run keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.data.curation.processes import each_in_processes
from pretrain.data.features import picture_features, sound_features
from pretrain.data.manifest import ManifestRow
from pretrain.files import replacing
from pretrain.jsonl import FieldError
from pretrain.media.read import Media, read_media
from pretrain.progress import track

BLOCK = 128  # clips of a file of features
NUM_READERS = 2
VERSION = 1  # of the embedded features


class LookEmbedder(Protocol):
    """A model that places clips: what it places near to each other can stand for each other."""

    def embed(self, media: Media) -> Sequence[np.ndarray]:
        """Groups of features [d] of a clip: uint8 frames [T, H, W, 3] and sound [N] at 16 kHz. Every group
        has the same say. Raises ValueError where a clip cannot be placed."""
        ...


class EmbeddedFeatures:
    """Picture with motion, and sound, without any model (`pretrain.data.features`)."""

    def embed(self, media: Media) -> Sequence[np.ndarray]:
        if media.frames is None or media.waveform is None:
            raise TypeError("read_media returned no frames or no sound")
        return picture_features(media.frames), sound_features(media.waveform)


MakeEmbedder = Callable[[], LookEmbedder]  # travels to processes: a class, or functools.partial of one
Look = Callable[[Any], Sequence[np.ndarray] | FieldError]  # an item's groups, or what is wrong with it


@dataclass(frozen=True)
class Looked:
    """Readable rows, their feature groups [n, d], and the errors of the other rows."""

    rows: list[ManifestRow]
    groups: Sequence[np.ndarray]
    rejected: list[FieldError]


class ClipLook:
    """Reads a row's clip and places it."""

    def __init__(self, make: MakeEmbedder = EmbeddedFeatures) -> None:
        self._embedder = make()

    def __call__(self, row: ManifestRow) -> Sequence[np.ndarray] | FieldError:
        try:
            return self._embedder.embed(read_media(row.data_path))
        except ValueError as error:
            return FieldError(row.line, "video_info[0].data_path", str(error))

    @staticmethod
    def stamp(row: ManifestRow) -> list[Any]:
        """What changes where the clip does."""
        path = str(row.data_path.absolute())
        try:
            found = row.data_path.stat()
        except OSError:
            return [path, 0, 0]
        return [path, found.st_size, found.st_mtime_ns]


def looked_at(rows: Sequence[ManifestRow]) -> Looked:
    """By the embedded features, in this process."""
    good, found, rejected = list[ManifestRow](), list[Sequence[np.ndarray]](), list[FieldError]()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        answers = pool.map(ClipLook(), rows)
        for row, answer in track(zip(rows, answers, strict=True), len(rows), "clips looked at"):
            if isinstance(answer, FieldError):
                rejected.append(answer)
            else:
                good.append(row)
                found.append(answer)
    return Looked(good, [np.array(group) for group in zip(*found, strict=True)], rejected)


def looked_at_in_blocks(
    rows: Sequence[ManifestRow],
    items: Sequence[Any],
    stamps: Sequence[Any],
    make: Callable[[], Look],
    name: str,
    folder: Path,
    nproc: int,
) -> Looked:
    """By `nproc` processes, each with a look of its own, at the items of the rows.

    Blocks of features are kept in `folder`, groups are mapped files there. Other stamps, or another name of
    the look with its settings, have other blocks.
    """
    cuts = range(0, len(rows), BLOCK)
    paths = [folder / f"{_key(stamps[first : first + BLOCK], name)}.npz" for first in cuts]
    jobs = [
        (items[first : first + BLOCK], path)
        for first, path in zip(cuts, paths, strict=True)
        if not path.is_file()
    ]
    answers = each_in_processes(partial(_look_at_block, make), jobs, nproc)
    for _ in track(answers, len(jobs), f"blocks of {BLOCK} clips looked at"):
        pass
    return _gathered(rows, paths, folder)


def _key(stamps: Sequence[Any], name: str) -> str:
    return hashlib.sha256(json.dumps([VERSION, name, *stamps]).encode()).hexdigest()[:24]


def _look_at_block(make: Callable[[], Look], job: tuple[Sequence[Any], Path]) -> None:
    """Writes the block: groups g0, g1, ... of the good clips, and `wrong`: their places and errors, JSON."""
    items, path = job
    look, found, wrong = _look(make), list[Sequence[np.ndarray]](), dict[int, tuple[int, str, str]]()
    for place, item in enumerate(items):
        answer = look(item)
        if isinstance(answer, FieldError):
            wrong[place] = (answer.line, answer.field, answer.message)
        else:
            found.append([np.asarray(group, np.float32) for group in answer])
    groups = {f"g{number}": np.array(group) for number, group in enumerate(zip(*found, strict=True))}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, wrong=np.array(json.dumps(wrong)), **groups)  # type: ignore[arg-type]


_made: dict[str, Look] = {}  # of this process: a model is loaded once


def _look(make: Callable[[], Look]) -> Look:
    if (key := repr(make)) not in _made:
        _made[key] = make()
    return _made[key]


def _gathered(rows: Sequence[ManifestRow], paths: Sequence[Path], folder: Path) -> Looked:
    good, rejected = list[ManifestRow](), list[FieldError]()
    for number, path in enumerate(paths):
        with np.load(path) as block:
            wrong = {int(place): error for place, error in json.loads(str(block["wrong"])).items()}
        for place, row in enumerate(rows[number * BLOCK : (number + 1) * BLOCK]):
            if place in wrong:
                rejected.append(FieldError(*wrong[place]))
            else:
                good.append(row)
    groups, first = list[np.ndarray](), 0
    for path in paths:
        with np.load(path) as block:
            some = [block[f"g{number}"] for number in range(len(block.files) - 1)]
        if not some:  # all of its clips are wrong
            continue
        if not groups:
            groups += [
                _mapped(folder / f"group{number}.npy", len(good), one) for number, one in enumerate(some)
            ]
        for whole, group in zip(groups, some, strict=True):
            whole[first : first + len(group)] = group
        first += len(some[0])
    return Looked(good, groups, rejected)


def _mapped(path: Path, count: int, like: np.ndarray) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float32, (count, like.shape[1]))
