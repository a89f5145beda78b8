"""Manifests -> encoded sets: every clip is read and encoded once, and training never opens a media file again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.codecs.base import Codecs, load_codecs
from pretrain.codecs.media import MediaError, fit_length, read_media
from pretrain.data.manifest import MAX_BAD_FRACTION, Row, check_rejected, read_manifest
from pretrain.data.store import DTYPES, LatentWriter, Sample
from pretrain.jsonl import FieldError
from pretrain.progress import track
from pretrain.prompt import parse
from pretrain.types import (
    AUDIO_SAMPLE_RATE_HZ,
    AUDIO_SAMPLES_PER_TOKEN,
    AUDIO_TOKENS_PER_S,
    SPEAKER_DIM,
    VIDEO_FRAMES_PER_LATENT,
    num_audio_tokens,
    num_video_latents,
)


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How sets are encoded and stored."""

    audio_only_sets: tuple[str, ...] = ("audio_only", "hq_audio")  # only the sound of these rows is used
    fps: float = 24.0  # clips of another rate are brought to this one
    latent_dtype: str = "float32"  # float16 or bfloat16 halve the disk at full size
    max_shard_mb: int = 64
    max_bad_fraction: float = MAX_BAD_FRACTION
    batch_size: int = 32
    num_readers: int = 2  # threads that read media

    def __post_init__(self) -> None:
        if self.latent_dtype not in DTYPES:
            raise ValueError(f"latent_dtype: unknown {self.latent_dtype!r}; valid: {', '.join(DTYPES)}")
        if min(self.max_shard_mb, self.batch_size, self.num_readers) < 1 or not 0 < self.fps < float("inf"):
            raise ValueError("max_shard_mb, batch_size, num_readers and fps must be positive")


@dataclass(frozen=True)
class _Clip:
    """A row's media and references, read and checked."""

    row: Row
    frames: Tensor | None  # [T, H, W, 3] uint8
    waveform: Tensor  # [L * 640]
    speakers: Tensor  # [R, 192]


def encode_sets(config: EncodeConfig, manifests: Mapping[str, Path], codec: Path, out: Path) -> dict[str, Any]:
    """Encodes each manifest into out/<set>; returns counts, rejected rows and seconds per set.

    Raises FileNotFoundError or ValueError in one line; a set is written whole or not at all.
    """
    codecs = load_codecs(codec)
    return {name: encode_set(config, path, codecs, out / name, name in config.audio_only_sets) for name, path in manifests.items()}


def encode_set(config: EncodeConfig, manifest: Path, codecs: Codecs, out: Path, audio_only: bool = False) -> dict[str, Any]:
    """Encodes one manifest. Rows whose media are bad are rejected with their reason; more than `max_bad_fraction` raises ValueError."""
    started = time.perf_counter()
    rows, rejected = read_manifest(manifest, config.max_bad_fraction)
    total = len(rows) + len(rejected)
    reader = _Reader(config, manifest.parent, codecs, audio_only)
    with LatentWriter(out, codecs.codec_id, config.latent_dtype, config.max_shard_mb * 2**20) as writer:
        batch: list[_Clip] = []
        for result in track(reader.read_all(rows), len(rows), f"{out.name}: clips encoded"):
            if isinstance(result, FieldError):
                rejected.append(result)
                continue
            batch.append(result)
            if len(batch) == config.batch_size:
                _write(batch, codecs, config.fps, writer)
                batch = []
        _write(batch, codecs, config.fps, writer)
        check_rejected(manifest, rejected, total, config.max_bad_fraction)
        reasons = [error.at(manifest.name) for error in rejected]
        summary = {"samples": total - len(rejected), "rejected": reasons, "seconds": round(time.perf_counter() - started, 2)}
        writer.extra = {"set": out.name, "manifest": manifest.name, "rejected": reasons}
    return summary


class _Reader:
    def __init__(self, config: EncodeConfig, folder: Path, codecs: Codecs, audio_only: bool) -> None:
        self.config, self.folder, self.codecs, self.audio_only = config, folder, codecs, audio_only
        self._reference = lru_cache(maxsize=4096)(self._embed_file)

    def read_all(self, rows: Sequence[Row]) -> Iterator[_Clip | FieldError]:
        """In the rows' order, a bounded number of clips ahead of the consumer."""
        ahead = 4 * self.config.batch_size
        with ThreadPoolExecutor(self.config.num_readers) as pool:
            for start in range(0, len(rows), ahead):
                yield from pool.map(self._read, rows[start : start + ahead])

    def _read(self, row: Row) -> _Clip | FieldError:
        try:
            media = read_media(row.data_path, fps=self.config.fps, sample_rate_hz=AUDIO_SAMPLE_RATE_HZ, want_video=not self.audio_only)
            assert media.waveform is not None
            if media.frames is None:
                num_tokens = max(1, round(len(media.waveform) / AUDIO_SAMPLE_RATE_HZ * AUDIO_TOKENS_PER_S))
            else:
                num_video_latents(len(media.frames))
                num_tokens = num_audio_tokens(len(media.frames), self.config.fps)
            sound = torch.from_numpy(fit_length(media.waveform, num_tokens * AUDIO_SAMPLES_PER_TOKEN))
            frames = None if media.frames is None else torch.from_numpy(media.frames)
        except ValueError as error:
            message = str(error) if isinstance(error, MediaError) else f"{row.data_path}: {error}"
            return FieldError(row.line, "video_info[0].data_path", message)
        try:
            return _Clip(row, frames, sound, self._speakers(row, sound))
        except ValueError as error:
            field = "meta.reference_paths" if "reference_paths" in row.meta else "text_list[0].speech_start"
            return FieldError(row.line, field, str(error))

    def _speakers(self, row: Row, sound: Tensor) -> Tensor:
        """[R, 192]: the row's own reference files; where it names none at all, the sound of the span itself (speech_start..speech_end)."""
        num_spans = len(parse(row.text).spans)
        speakers = torch.zeros(num_spans, SPEAKER_DIM)
        if "reference_paths" in row.meta:
            paths = row.meta["reference_paths"]
            if not isinstance(paths, list) or len(paths) > num_spans:
                raise ValueError(f"expected a list of at most {num_spans} paths, one per speech span, got {paths!r}")
            for index, path in enumerate(paths):
                if path:
                    speakers[index] = self._reference(self.folder / path)
            return speakers
        for index, (start_s, end_s) in enumerate(zip(row.speech_start_s, row.speech_end_s, strict=True)):
            start, end = (round(at * AUDIO_SAMPLE_RATE_HZ) for at in (start_s, end_s))
            speakers[index] = self.codecs.speaker.embed(sound[start:end])
        return speakers

    def _embed_file(self, path: Path) -> Tensor:
        waveform = read_media(path, sample_rate_hz=AUDIO_SAMPLE_RATE_HZ, want_video=False).waveform
        assert waveform is not None
        return self.codecs.speaker.embed(torch.from_numpy(waveform))


def _write(clips: Sequence[_Clip], codecs: Codecs, fps: float, writer: LatentWriter) -> None:
    """Encodes clips of equal shape together and adds them in order."""
    if not clips:
        return
    videos = _in_groups([clip.frames for clip in clips], codecs.video.encode)
    audios = _in_groups([clip.waveform for clip in clips], codecs.audio.encode)
    text = codecs.text.encode([parse(clip.row.text) for clip in clips])
    for index, clip in enumerate(clips):
        positions = text.speaker_positions[index][: len(clip.speakers)]
        meta = {**clip.row.meta, "text": clip.row.text, "line": clip.row.line}
        writer.add(Sample(clip.row.data_id, videos[index], audios[index], fps / VIDEO_FRAMES_PER_LATENT,
                          text.states[index][text.mask[index]], positions, clip.speakers, meta))  # fmt: skip


def _in_groups(inputs: Sequence[Tensor | None], encode: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, value in enumerate(inputs):
        if value is not None:
            groups[tuple(value.shape)].append(index)
    outputs: list[Tensor | None] = [None] * len(inputs)
    for members in groups.values():
        encoded = encode(torch.stack([value for index in members if (value := inputs[index]) is not None]))
        for index, latents in zip(members, encoded, strict=True):
            outputs[index] = latents
    return outputs
