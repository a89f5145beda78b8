"""Manifest rows -> clips for the codecs: media decoded, fitted to a bucket, reference voices embedded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pretrain.codecs.base import SpeakerEncoder
from pretrain.data.manifest import ManifestRow
from pretrain.data.stream.buckets import (
    BucketConfig,
    audio_lengths,
    check_speech,
    choose_length,
    choose_size,
    fit_picture,
)
from pretrain.jsonl import FieldError
from pretrain.media.channels import mixed
from pretrain.media.errors import MediaError
from pretrain.media.read import Media, read_media
from pretrain.media.write import fit_length
from pretrain.prompt import parse
from pretrain.storage import local_file
from pretrain.types import (
    AUDIO_SAMPLE_RATE_HZ,
    AUDIO_SAMPLES_PER_TOKEN,
    AUDIO_TOKENS_PER_S,
    SPEAKER_DIM,
    num_audio_tokens,
    num_video_latents,
)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class MediaClip:
    """A row's media and references, read and checked."""

    row: ManifestRow
    frames: Tensor | None  # [T, H, W, 3] uint8
    waveform: Tensor | None  # mono [L * 640] or stereo [2, L * 640], as the codec takes it
    speakers: Tensor  # [R, 192]
    mended: Mapping[str, float] = field(default_factory=dict)  # as of `Media`


class _Speech(ValueError):
    """Something is wrong with the speech of a row."""


@dataclass(frozen=True)
class Streams:
    """What is used of a set's rows."""

    video: bool = True
    audio: bool = True


class ClipReader:
    """`reader(row)` returns the clip or the rejection. Thread-safe. Voices are of the mono mix."""

    def __init__(
        self,
        buckets: BucketConfig,
        fps: float,
        folder: Path,
        speaker: SpeakerEncoder,
        streams: Streams,
        channels: int = 1,
    ) -> None:
        self.buckets, self.fps, self.folder, self.speaker, self.streams = (
            buckets,
            fps,
            folder,
            speaker,
            streams,
        )
        self.channels = channels
        self._pixels = buckets.pixels
        self._reference = lru_cache(maxsize=4096)(self._embed_file)

    def __call__(self, row: ManifestRow) -> MediaClip | FieldError:
        try:
            media = _read(row.data_path, self.fps, self.streams, self.channels)
            frames, sound = self._frames(row, media), self._sound(row, media)
        except _Speech as error:
            return FieldError(row.line, "text_list[0].speech_end", str(error))
        except (ValueError, FileNotFoundError) as error:
            message = str(error) if isinstance(error, MediaError) else f"{row.data_path}: {error}"
            return FieldError(row.line, "video_info[0].data_path", message)
        try:
            return MediaClip(row, frames, sound, self._speakers(row, sound), media.mended)
        except (ValueError, FileNotFoundError) as error:
            field = "meta.reference_paths" if "reference_paths" in row.meta else "text_list[0].speech_start"
            return FieldError(row.line, field, str(error))

    def _frames(self, row: ManifestRow, media: Media) -> Tensor | None:
        """The frames in their bucket."""
        if media.frames is None:
            return None
        frames = torch.from_numpy(media.frames)
        kept = (
            choose_length(len(frames), self.buckets.frames, "frames") if self.buckets.frames else len(frames)
        )
        num_video_latents(kept)
        _check_speech(row, kept / self.fps, len(frames) / self.fps)
        if not self._pixels:
            return frames[:kept]
        size = choose_size(frames.shape[1], frames.shape[2], self._pixels, self.buckets.max_upscale)
        return fit_picture(frames[:kept], size)

    def _sound(self, row: ManifestRow, media: Media) -> Tensor | None:
        """As long as the frames beside it; alone, as long as its bucket."""
        if media.waveform is None:
            return None
        if media.frames is None:
            tokens = whole = max(
                1, round(media.waveform.shape[-1] / AUDIO_SAMPLE_RATE_HZ * AUDIO_TOKENS_PER_S)
            )
            if self.buckets.frames:
                tokens = choose_length(whole, audio_lengths(self.buckets.frames, self.fps), "audio tokens")
                _check_speech(row, tokens / AUDIO_TOKENS_PER_S, whole / AUDIO_TOKENS_PER_S)
        else:
            frames = len(media.frames)
            kept = choose_length(frames, self.buckets.frames, "frames") if self.buckets.frames else frames
            tokens = num_audio_tokens(kept, self.fps)
        return torch.from_numpy(fit_length(media.waveform, tokens * AUDIO_SAMPLES_PER_TOKEN))

    def _speakers(self, row: ManifestRow, sound: Tensor | None) -> Tensor:
        """[R, 192]: the row's reference files; without any, the span itself (speech_start..end)."""
        num_spans = len(parse(row.text).spans)
        speakers = torch.zeros(num_spans, SPEAKER_DIM)
        if "reference_paths" in row.meta:
            paths = row.meta["reference_paths"]
            if (
                not isinstance(paths, list)
                or len(paths) > num_spans
                or not all(path is None or isinstance(path, str) for path in paths)
            ):
                raise ValueError(
                    f"expected a list of at most {num_spans} paths, one per speech span, got {paths!r}"
                )
            for index, path in enumerate(paths):
                if path:
                    speakers[index] = self._reference(self.folder / path)
        elif sound is not None:
            mono = sound if sound.dim() == 1 else torch.from_numpy(mixed(sound.numpy(), 1))
            for index, (start_s, end_s) in enumerate(zip(row.speech_start_s, row.speech_end_s, strict=True)):
                start, end = (round(at * AUDIO_SAMPLE_RATE_HZ) for at in (start_s, end_s))
                speakers[index] = self.speaker.embed(mono[start:end])
        return speakers

    def _embed_file(self, path: Path) -> Tensor:
        waveform = _read(path, self.fps, Streams(video=False), channels=1).waveform
        assert waveform is not None
        return self.speaker.embed(torch.from_numpy(waveform))


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Results in the order of the items, at most `ahead` of them waiting: decoded clips are large."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _read(path: Path, fps: float, streams: Streams, channels: int) -> Media:
    with local_file(path) as local:
        return read_media(
            local,
            fps=fps,
            sample_rate_hz=AUDIO_SAMPLE_RATE_HZ,
            want_video=streams.video,
            want_audio=streams.audio,
            channels=channels,
        )


def _check_speech(row: ManifestRow, kept_s: float, whole_s: float) -> None:
    try:
        check_speech(row.speech_end_s, len(parse(row.text).spans), kept_s, whole_s)
    except ValueError as error:
        raise _Speech(str(error)) from None
