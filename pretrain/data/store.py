"""Encoded data sets on disk: safetensors shards, `index.jsonl` (one line per sample) and `manifest.json` (codec, sizes, checksums).

A set's folder is written under a temporary name and takes its place when complete. Nothing here is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.files import read_json, save_tensors

FORMAT = "nava-latents-1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sample:
    """One encoded clip; a modality the set does not have is None. All tensors are float32 but `speaker_positions` (int64)."""

    data_id: str
    video: Tensor | None  # [48, F, h, w]
    audio: Tensor | None  # [128, L]
    video_rate_hz: float  # latent frames per second, beside which the audio's 25 tokens per second are rescaled
    text: Tensor  # [S, D]
    speaker_positions: Tensor  # [R] index along S of each span's timbre token
    speakers: Tensor  # [R, 192] reference voice of each span; zeros = none
    meta: dict[str, Any] = field(default_factory=dict)


class LatentWriter:
    """Context manager that writes a set's folder; on an error nothing is left behind and an older folder stays as it was."""

    def __init__(self, folder: Path, codec_id: str, latent_dtype: str = "float32", max_shard_bytes: int = 64 * 2**20) -> None:
        if latent_dtype not in DTYPES:
            raise ValueError(f"latent_dtype: unknown {latent_dtype!r}; valid: {', '.join(DTYPES)}")
        self.folder, self.codec_id, self.latent_dtype, self.max_shard_bytes = Path(folder), codec_id, latent_dtype, max_shard_bytes
        self._temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        self._index: list[dict[str, Any]] = []
        self._shards: dict[str, dict[str, Any]] = {}
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self.extra: dict[str, Any] = {}  # further keys of manifest.json, e.g. the rejected rows

    def __enter__(self) -> LatentWriter:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        return self

    def add(self, sample: Sample) -> None:
        """Raises ValueError naming the sample when a latent is not finite."""
        key = f"{len(self._index):07d}"
        tensors = {"text": sample.text.half(), "speaker_positions": sample.speaker_positions, "speakers": sample.speakers.float()}
        for name in ("video", "audio"):
            latents = getattr(sample, name)
            if latents is not None:
                tensors[name] = latents.to(DTYPES[self.latent_dtype])
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{sample.data_id}: {name} has non-finite values; fit the codec again or drop the row")
            self._pending[f"{key}.{name}"] = tensor.contiguous().clone()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self._index.append({"data_id": sample.data_id, "shard": self._shard_name(), "key": key, "video_rate_hz": sample.video_rate_hz,
                            "shapes": shapes, "meta": sample.meta})  # fmt: skip
        self._pending_bytes += size
        if self._pending_bytes >= self.max_shard_bytes - 2 * size:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._index)
                (self._temporary / "index.jsonl").write_text(lines, encoding="utf-8")
                manifest = {"format": FORMAT, "codec_id": self.codec_id, "latent_dtype": self.latent_dtype, "samples": len(self._index),
                            "index_sha256": hashlib.sha256(lines.encode()).hexdigest(), "shards": self._shards, **self.extra}  # fmt: skip
                (self._temporary / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                replace_folder(self._temporary, self.folder)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _shard_name(self) -> str:
        return f"shard-{len(self._shards):05d}.safetensors"

    def _flush(self) -> None:
        if self._pending:
            path = self._temporary / self._shard_name()
            save_tensors(self._pending, path)
            self._shards[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            self._pending, self._pending_bytes = {}, 0


class LatentStore:
    """A written set as a sequence of `Sample`; tensors are read when asked for, or all at once with `in_memory`.

    Raises FileNotFoundError for a folder that is not a set, ValueError for another codec, a damaged shard or index.
    """

    def __init__(self, folder: str | Path, *, in_memory: bool = False, codec_id: str | None = None) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no encoded set here; run `nava encode` first")
        self.manifest: Mapping[str, Any] = read_json(path, "run `nava encode` again")
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{path} format: {self.manifest.get('format')!r}, this code reads {FORMAT!r}; run `nava encode` again")
        self.codec_id: str = self.manifest["codec_id"]
        if codec_id is not None and codec_id != self.codec_id:
            raise ValueError(f"{path} codec_id: encoded by {self.codec_id}, the codec here is {codec_id}; run `nava encode` again")
        lines = (self.folder / "index.jsonl").read_bytes()
        if hashlib.sha256(lines).hexdigest() != self.manifest["index_sha256"]:
            raise ValueError(f"{self.folder / 'index.jsonl'}: damaged (its checksum differs from manifest.json); run `nava encode` again")
        self.index: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
        self._open: dict[str, Any] = {}
        self._samples = [self._read(row) for row in self.index] if in_memory else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index] if self._samples is not None else self._read(self.index[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files do not travel to worker processes

    def _read(self, row: Mapping[str, Any]) -> Sample:
        shard = self._shard(row["shard"])
        tensors = {name: shard.get_tensor(f"{row['key']}.{name}") for name in row["shapes"]}
        floats = {name: tensors[name].float() if name in tensors else None for name in ("video", "audio")}
        return Sample(row["data_id"], floats["video"], floats["audio"], row["video_rate_hz"], tensors["text"].float(),
                      tensors["speaker_positions"], tensors["speakers"], row["meta"])  # fmt: skip

    def _shard(self, name: str) -> Any:
        """The open shard; its checksum is compared at the first use."""
        if name not in self._open:
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path}: shard is missing; run `nava encode` again")
            if sha256_of(path) != self.manifest["shards"][name]["sha256"]:
                raise ValueError(f"{path}: damaged shard (its checksum differs from manifest.json); run `nava encode` again")
            try:
                self._open[name] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path}: not a safetensors file ({error}); run `nava encode` again") from None
        return self._open[name]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path, old: Path) -> None:
    """Puts `new` in the place of `old`; should the machine stop in between, the older one is left beside it as `.NAME.old`."""
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
