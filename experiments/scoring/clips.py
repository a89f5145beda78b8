"""Clips to score and their metadata, from media folders, `nava generate` indices, manifests or prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.manifest import ManifestRow, read_manifest
from pretrain.jsonl import FieldError, scan
from pretrain.media.read import SOUND_SUFFIXES, read_media
from pretrain.media.stills import read_image
from pretrain.prompt import parse, read_prompts
from rewards.types import Box, Clip

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm"})
VIDEO_KEYS = ("video", "video_path")
INDEX = "index.jsonl"
REFERENCE_RATE_HZ = 16_000


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk with its prompt and conditions; `group` is shared by clips of the same prompt.

    Also used for decoded latents, then without a path.
    """

    name: str  # unique in its source
    path: Path = Path()
    prompt: str = ""
    spans: tuple[str, ...] = ()
    references: tuple[Path | None, ...] = ()
    voices: tuple[str, ...] = ()
    mouth_boxes: tuple[Box, ...] = ()
    face_boxes: tuple[Box, ...] = ()
    span_times: tuple[tuple[float, float], ...] = ()
    first_frame: Path | None = None
    reference_sound: Path | None = None
    group: str = ""
    sound_only: bool = False  # the picture is not decoded

    def attached(self) -> list[Path]:
        """Other files that its scores depend on."""
        return [
            path for path in (*self.references, self.first_frame, self.reference_sound) if path is not None
        ]

    def clip(
        self, frames: np.ndarray | None, waveform: np.ndarray | None, fps: float, sample_rate_hz: int
    ) -> Clip:
        """Decoded media with all conditions; attached files are read once each.

        frames uint8 [T, H, W, 3], waveform float32 [N]. Raises MediaError for an unreadable reference,
        ValueError for an unreadable image.
        """
        return Clip(
            waveform=waveform,
            sample_rate_hz=sample_rate_hz,
            frames=frames,
            fps=fps,
            prompt=self.prompt,
            spans=self.spans,
            references=tuple(_sound(path, REFERENCE_RATE_HZ) if path else None for path in self.references),
            voices=self.voices,
            name=self.name,
            mouth_boxes=self.mouth_boxes,
            face_boxes=self.face_boxes,
            span_times=self.span_times,
            first_frame=_image(self.first_frame) if self.first_frame else None,
            reference_sound=_sound(self.reference_sound, sample_rate_hz) if self.reference_sound else None,
        )


def clip_file(
    name: str,
    path: Path,
    text: str,
    meta: Mapping[str, Any],
    references: Iterable[Path | None],
    times: tuple[tuple[float, float], ...] = (),
    image: Path | str | None = None,
) -> ClipFile:
    """Prompt and conditions of a row of prompts, an index or a manifest.

    `text` with its spans, `meta` of the corpus, paths of references and first frame, times of the spans in
    seconds.
    """
    moving = meta.get("kind") == "camera"  # the mouth moves out of its box
    return ClipFile(
        name=name,
        path=path,
        prompt=text,
        spans=tuple(span.text for span in parse(text).spans),
        references=tuple(references),
        voices=tuple(meta.get("voices", ())),
        mouth_boxes=() if moving else _boxes(meta.get("mouth_boxes", ())),
        face_boxes=() if moving else _boxes(meta.get("face_boxes", ())),
        span_times=times,
        first_frame=Path(image) if image else None,
        group=str(meta.get("group", text)),
    )


def list_clips(source: Path) -> list[ClipFile]:
    """The clips of a folder (using index.jsonl of `nava generate` if present) or of a JSONL.

    A JSONL holds training rows (`video_info`), rows of an index, or prompts with a `video` each. A sound
    beside a video of the same name is that video's. Raises FileNotFoundError or ValueError in one line for
    nothing to score or a bad row.
    """
    if source.is_dir():
        clips = list(_folder(source))
        if not clips:
            raise FileNotFoundError(
                f"{source}: no {INDEX} and no {', '.join(sorted(VIDEO_SUFFIXES | SOUND_SUFFIXES))} file in it"
            )
    else:
        clips = list(_jsonl(source))
    seen: set[str] = set()
    for clip in clips:
        if clip.name in seen:
            raise ValueError(f"{source}: {clip.name!r} is there twice; make names unique")
        seen.add(clip.name)
    return clips


def check_attached(clips: Iterable[ClipFile]) -> None:
    """Raises FileNotFoundError for the first missing reference or image."""
    for clip in clips:
        for path in clip.attached():
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; {clip.name} refers to it, mend the row or put the file there"
                )


def load_clip(file: ClipFile) -> Clip:
    """The clip at its own frame and sample rate, mono; a missing side is None. Raises MediaError."""
    want_video = False if file.sound_only else None
    media = read_media(file.path, fps=None, sample_rate_hz=None, want_video=want_video, want_audio=None)
    clip = file.clip(media.frames, media.waveform, media.fps, media.sample_rate_hz)
    return dataclasses.replace(clip, mended=media.mended)


def _folder(folder: Path) -> Iterator[ClipFile]:
    indices = sorted(folder.rglob(INDEX))
    indexed = {index.parent for index in indices}
    for index in indices:
        yield from index_clips(index, index.parent.relative_to(folder))
    media = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES | SOUND_SUFFIXES and path.is_file()
    ]
    videos = {path.with_suffix("") for path in media if path.suffix.lower() in VIDEO_SUFFIXES}
    for path in media:
        beside = path.suffix.lower() in SOUND_SUFFIXES and path.with_suffix("") in videos
        if path.parent not in indexed and not beside and not path.name.startswith("."):
            yield ClipFile(path.relative_to(folder).with_suffix("").as_posix(), path)


def _jsonl(source: Path) -> Iterator[ClipFile]:
    line, first = next(scan(source))
    if isinstance(first, FieldError):
        raise ValueError(first.at(source))
    if "video_info" in first:
        yield from (manifest_clip(row, source.parent) for row in read_manifest(source)[0])
    elif "reference_paths" in first and "video" in first:
        yield from index_clips(source)
    elif any(key in first for key in VIDEO_KEYS):
        yield from _prompts(source)
    else:
        raise ValueError(
            f"{source}:{line} video: missing; give a folder, a training manifest (video_info), or prompts "
            "with a video each"
        )


def manifest_clip(row: ManifestRow, folder: Path) -> ClipFile:
    """A row of the training manifest in `folder`."""
    times = tuple(zip(row.speech_start_s, row.speech_end_s, strict=True))
    references = [
        folder / reference if reference else None for reference in row.meta.get("reference_paths", ())
    ]
    return clip_file(row.data_id, row.data_path, row.text, row.meta, references, times)


def index_clips(index: Path, prefix: Path = Path(), kind: str = "") -> Iterator[ClipFile]:
    """Rows of an index.jsonl of `nava generate`, names prefixed with `prefix`, `kind` replacing their own.

    Raises ValueError in one line for a bad row.
    """
    for line, row in scan(index):
        if isinstance(row, FieldError):
            raise ValueError(row.at(index))
        if missing := {"data_id", "prompt", "video", "reference_paths", "meta"} - row.keys():
            raise ValueError(f"{index}:{line} {sorted(missing)[0]}: missing; run `nava generate` again")
        # references are stored relative to the working directory of the command
        references = [Path(reference) if reference else None for reference in row["reference_paths"]]
        meta = {**row["meta"], "kind": kind} if kind else row["meta"]
        name, video = (prefix / row["data_id"]).as_posix(), index.parent / row["video"]
        yield clip_file(name, video, row["prompt"], meta, references, image=row.get("image_path"))


def _prompts(source: Path) -> Iterator[ClipFile]:
    videos = {
        line: next((row[key] for key in VIDEO_KEYS if row.get(key)), None)
        for line, row in scan(source)
        if isinstance(row, dict)
    }
    for row in read_prompts(source):
        video = videos[row.line]
        if not isinstance(video, str):
            raise ValueError(f"{source}:{row.line} video: expected a path, got {video!r}")
        path, text = source.parent / video, row.prompt.text
        yield clip_file(row.data_id, path, text, row.meta, row.reference_paths, image=row.image_path)


def _boxes(boxes: Iterable[Iterable[float]]) -> tuple[Box, ...]:
    return tuple((int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in boxes)


@lru_cache(256)
def _sound(path: Path, sample_rate_hz: int) -> np.ndarray | None:
    return read_media(path, want_video=False, sample_rate_hz=sample_rate_hz).waveform


@lru_cache(256)
def _image(path: Path) -> np.ndarray:
    return read_image(path)
