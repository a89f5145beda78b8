"""The folder of a service: what jobs bring, what is being made, and what was made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from orchestration.generation_service.offer import FIRST_FRAME_FILE, REFERENCE_FILE
from orchestration.private_files import private_folder
from orchestration.service.decode import REFERENCE_RATE_HZ

SUFFIXES = {"video": ".mp4", "audio": ".wav"}


@dataclass(frozen=True)
class Folders:
    """Under `root`, all of mode 0700; workers on other machines must see it under this path."""

    root: Path

    @staticmethod
    def under(root: Path) -> Folders:
        for name in ("", "inputs", "work", "results"):
            private_folder(root / name)
        return Folders(root.resolve())

    @property
    def database(self) -> Path:
        return self.root / "jobs.db"

    @property
    def work(self) -> Path:
        """Files of batches that run."""
        return self.root / "work"

    def inputs(self, id: str) -> Path:
        return self.root / "inputs" / id

    def result(self, id: str, variant: str) -> Path:
        """variant: video or audio."""
        return self.root / "results" / f"{id}{SUFFIXES[variant]}"

    def keep_inputs(self, id: str, first_frame: np.ndarray | None, voices: dict[int, np.ndarray]) -> None:
        """Write what was decoded, on disk when this returns. Raises OSError, and leaves nothing."""
        folder = self.inputs(id)
        try:
            folder.mkdir(mode=0o700)
            if first_frame is not None:
                Image.fromarray(first_frame).save(folder / FIRST_FRAME_FILE, compress_level=1)
            for number, samples in voices.items():
                path = folder / REFERENCE_FILE.format(number)
                soundfile.write(path, samples, REFERENCE_RATE_HZ, subtype="FLOAT")
            synced([*folder.iterdir(), folder, folder.parent])
        except (OSError, soundfile.LibsndfileError) as error:
            self.forget_inputs([id])
            raise error if isinstance(error, OSError) else OSError(str(error)) from None

    def forget_inputs(self, ids: Iterable[str]) -> None:
        for id in ids:
            shutil.rmtree(self.inputs(id), ignore_errors=True)

    def forget_results(self, ids: Iterable[str]) -> None:
        for id in ids:
            for variant in SUFFIXES:
                with suppress(OSError):
                    self.result(id, variant).unlink(missing_ok=True)

    def take(self, id: str, made: dict[str, Path]) -> dict[str, int]:
        """Move files that a worker made to their place; their bytes by variant. Raises OSError."""
        sizes = {}
        for variant, path in made.items():
            synced([path])
            path.replace(self.result(id, variant))
            sizes[variant] = self.result(id, variant).stat().st_size
        synced([self.root / "results"])
        return sizes

    def sweep(self, wanted: Callable[[], Collection[str]]) -> None:
        """Remove what killed processes left: all work, and files of jobs that are not in `wanted`."""
        for path in self.work.iterdir():
            path.unlink(missing_ok=True)
        known = wanted()
        for path in (self.root / "inputs").iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.root / "results").iterdir():
            if path.stem not in known:
                path.unlink(missing_ok=True)


def synced(paths: Iterable[Path]) -> None:
    """To the disk, so that a loss of power takes nothing that was said to be there."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
