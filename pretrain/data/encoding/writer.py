"""Writes samples as an encoded set; `nava encode` writes units instead, which can be resumed."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from pretrain.data.encoding.merge import write_index, write_manifest
from pretrain.data.encoding.parts import PARTS, Draft, list_parts, write_unit
from pretrain.data.stream.sample import DTYPES, Sample
from pretrain.owned import owned_folder


class LatentWriter:
    """Context manager that writes a set's local folder atomically: an error leaves an older folder intact."""

    def __init__(
        self, folder: Path, codec_id: str, latent_dtype: str = "float32", max_shard_bytes: int = 64 * 2**20
    ) -> None:
        if latent_dtype not in DTYPES:
            raise ValueError(f"latent_dtype: unknown {latent_dtype!r}; valid: {', '.join(DTYPES)}")
        self.folder, self.codec_id, self.latent_dtype, self.max_shard_bytes = (
            Path(folder),
            codec_id,
            latent_dtype,
            max_shard_bytes,
        )
        self._temporary, self._open = Path(), ExitStack()
        self._draft, self._unit = Draft(latent_dtype), 0
        self.extra: dict[str, Any] = {}  # further keys of manifest.json

    def __enter__(self) -> LatentWriter:
        self._temporary = self._open.enter_context(owned_folder(self.folder, "encode"))
        return self

    def add(self, sample: Sample) -> None:
        """Raises ValueError naming the sample when a latent is not finite."""
        size = self._draft.add(sample)
        if self._draft.num_bytes >= self.max_shard_bytes - 2 * size:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.push(self._open)  # which learns of an error, also of those below
            if error is not None:
                raise error
            self._flush()
            merged = write_index(self._temporary, list_parts(self._temporary))
            facts = {"codec_id": self.codec_id, "latent_dtype": self.latent_dtype, **self.extra}
            write_manifest(self._temporary, merged, self.folder.name, facts)
            shutil.rmtree(self._temporary / PARTS, ignore_errors=True)

    def _flush(self) -> None:
        if self._draft.rows:
            write_unit(self._temporary, self._unit, self._draft)
            self._draft, self._unit = Draft(self.latent_dtype), self._unit + 1
