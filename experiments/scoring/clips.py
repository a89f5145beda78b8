"""Clips to score and their metadata, from media folders, `nava generate` indices, manifests or prompts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pretrain.config import one_line
from pretrain.data.manifest import ManifestRow, read_manifest
from pretrain.files import path_of_row
from pretrain.jsonl import FieldError, scan
from pretrain.media.errors import MediaError
from pretrain.media.read import read_media
from pretrain.media.stills import read_image
from pretrain.prompt import parse, read_prompts
from rewards.media_folder import (
    BESIDE,
    SOUND_SUFFIXES,
    VIDEO_SUFFIXES,
    left_out_line,
    scan_folder,
    unique_names,
)
from rewards.types import Box, Clip

ReadT = TypeVar("ReadT")
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

        frames uint8 [T, H, W, 3], waveform float32 [N]. Raises MediaError for an unreadable reference or
        image.
        """
        voices = [
            path
            and attached(f"the voice of span {number}", path, lambda path: _sound(path, REFERENCE_RATE_HZ))
            for number, path in enumerate(self.references, start=1)
        ]
        image, recording = self.first_frame, self.reference_sound
        return Clip(
            waveform=waveform,
            sample_rate_hz=sample_rate_hz,
            frames=frames,
            fps=fps,
            prompt=self.prompt,
            spans=self.spans,
            references=tuple(voices),
            voices=self.voices,
            name=self.name,
            mouth_boxes=self.mouth_boxes,
            face_boxes=self.face_boxes,
            span_times=self.span_times,
            first_frame=image and attached("the first frame", image, _image),
            reference_sound=recording
            and attached(
                "the recording to compare with", recording, lambda path: _sound(path, sample_rate_hz)
            ),
        )


@dataclass(frozen=True)
class ClipSource:
    """Clips to score, and what lies in their folder and is not among them: kind -> how many."""

    clips: list[ClipFile]
    left_out: Mapping[str, int] = field(default_factory=dict)


def attached(what: str, path: Path, read: Callable[[Path], ReadT]) -> ReadT:
    """What `read` gives of a file that a clip refers to. Raises MediaError naming it, whatever `read`
    raises."""
    try:
        return read(path)
    except MediaError:
        raise
    except Exception as error:  # decoders raise what they like for a damaged file
        raise MediaError(
            f"{path}: {what} cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from error


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
    """The clips of `read_source`."""
    return read_source(source).clips


def read_source(source: Path) -> ClipSource:
    """The clips of a folder (using index.jsonl of `nava generate` if present) or of a JSONL.

    A JSONL holds training rows (`video_info`), rows of an index, or prompts with a `video` each. A sound
    beside a video of the same name is that video's. Files of a folder are named by their path in it without
    suffix, with it where two have the same. Raises FileNotFoundError or ValueError in one line for nothing
    to score or a bad row.
    """
    if source.is_dir():
        found = _folder(source)
        if not found.clips:
            raise FileNotFoundError(
                f"{source}: no {INDEX} and no {', '.join(sorted(VIDEO_SUFFIXES | SOUND_SUFFIXES))} file in it"
                + (f" ({left_out_line(found.left_out)})" if found.left_out else "")
            )
    else:
        found = _jsonl(source)
    seen: set[str] = set()
    for clip in found.clips:
        if clip.name in seen:
            raise ValueError(f"{source}: {clip.name!r} is there twice; make names unique")
        seen.add(clip.name)
    return found


def missing_file(clip: ClipFile) -> Path | None:
    """A file that the clip refers to and that is not there."""
    return next((path for path in clip.attached() if not path.is_file()), None)


def check_attached(clips: Iterable[ClipFile]) -> None:
    """Raises FileNotFoundError where every clip with a reference or image misses one: a wrong path of all
    rows, not the trouble of one."""
    wrong = [(clip, missing_file(clip)) for clip in clips if clip.attached()]
    if wrong and all(path for _, path in wrong):
        clip, path = wrong[0]
        rest = f" ({len(wrong) - 1} more rows miss a file)" if len(wrong) > 1 else ""
        raise FileNotFoundError(
            f"{path}: no such file; {clip.name} refers to it, mend the row or put the file there{rest}"
        )


def load_clip(file: ClipFile) -> Clip:
    """The clip at its own frame and sample rate, mono; a missing side is None. Raises MediaError."""
    want_video = False if file.sound_only else None
    media = read_media(file.path, fps=None, sample_rate_hz=None, want_video=want_video, want_audio=None)
    clip = file.clip(media.frames, media.waveform, media.fps, media.sample_rate_hz)
    return dataclasses.replace(clip, mended=media.mended)


def _folder(folder: Path) -> ClipSource:
    found = scan_folder(folder, VIDEO_SUFFIXES | SOUND_SUFFIXES | {".jsonl"})
    indices = [path for path in found.files if path.name == INDEX]
    media = [path for path in found.files if path.suffix.lower() != ".jsonl"]
    left_out = Counter(found.left_out)
    left_out[".jsonl"] += len(found.files) - len(media) - len(indices)
    indexed = [clip for index in indices for clip in index_clips(index, index.parent.relative_to(folder))]
    taken = {clip.path for clip in indexed}
    indexed_folders = {index.parent for index in indices}
    videos = {path.with_suffix("") for path in media if path.suffix.lower() in VIDEO_SUFFIXES}
    free: list[Path] = []
    for path in media:
        if path.suffix.lower() in SOUND_SUFFIXES and path.with_suffix("") in videos and path not in taken:
            left_out[BESIDE] += 1
        elif path.parent in indexed_folders and path not in taken:
            left_out[f"{path.suffix.lower()} not in {INDEX}"] += 1
        elif path not in taken:
            free.append(path)
    clips = [ClipFile(name, path) for path, name in unique_names(free, folder).items()]
    return ClipSource([*indexed, *clips], dict(sorted((+left_out).items())))


def _jsonl(source: Path) -> ClipSource:
    line, first = next(scan(source))
    if isinstance(first, FieldError):
        raise ValueError(first.at(source))
    if "video_info" in first:
        rows, rejected = read_manifest(source)
        bad = {f"bad row (the first: {rejected[0].at(source)})": len(rejected)} if rejected else {}
        return ClipSource([manifest_clip(row, source.parent) for row in rows], bad)
    if "reference_paths" in first and "video" in first:
        return ClipSource(list(index_clips(source)))
    if any(key in first for key in VIDEO_KEYS):
        return ClipSource(list(_prompts(source)))
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
        references = [
            path_of_row(reference, index.parent) if reference else None
            for reference in row["reference_paths"]
        ]
        image = path_of_row(row["image_path"], index.parent) if row.get("image_path") else None
        meta = {**row["meta"], "kind": kind} if kind else row["meta"]
        # of a clip without a picture, the sound
        media = row["video"] or row.get("audio", "")
        name, video = (prefix / row["data_id"]).as_posix(), index.parent / media
        yield clip_file(name, video, row["prompt"], meta, references, image=image)


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
