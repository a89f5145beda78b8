"""What a worker writes for one source: its clips, voices for references, and the record of all of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preparation.duplicates import picture_bits, sound_print
from experiments.preparation.moments import picture_track
from experiments.preparation.records import SPEECH_RATE_HZ, RawClip, RawVideo, Rejection
from experiments.preparation.remote import fetched
from experiments.preparation.services import Services
from experiments.preparation.source_work import Settings, Take, VideoOutcome, work_on
from experiments.preparation.speakers import MIN_SPAN_S
from pretrain.config import one_line
from pretrain.files import write_json
from pretrain.media.write import write_mp4, write_wav

RESULT = "result.json"
PREVIEW_SIDE, PREVIEWS_OF_SOURCE = 160, 4
VERSION = 4  # of what a source's result holds


def key_of(source: RawVideo, sha256: str, settings: Settings, services: Services) -> str:
    """Name of the folder of a source's results: other content, texts or settings have another one."""
    said = [
        VERSION,
        source.name,
        source.data_id,
        sha256,
        asdict(source.given),
        asdict(settings),
        asdict(services),
    ]
    return hashlib.sha256(json.dumps(said, default=str, sort_keys=True).encode()).hexdigest()[:24]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_source(source: RawVideo, settings: Settings, work: Path, key: str) -> Path:
    """Writes the folder `work/key`, whole or not at all, and answers it. Raises as `work_on` does."""
    target = work / key
    if (target / RESULT).is_file():
        return target
    fresh = work / f".{key}.{os.getpid()}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        kept: list[dict[str, Any]] = []
        rejected: list[Rejection] = []

        def take(found: RawClip | Rejection) -> None:
            if isinstance(found, RawClip):
                kept.append(_written(found, fresh))
            elif found.clip is not None and len(rejected) < PREVIEWS_OF_SOURCE:
                rejected.append(_previewed(found, fresh))

        outcome, digest = _worked_on(source, settings, take, fresh)
        previews = {one.data_id: one for one in rejected}
        write_json(
            fresh / RESULT,
            {
                "source": source.name,
                "sha256": digest,
                "has_text": bool(source.given.digest),
                "seconds": round(outcome.seconds, 4),
                "scenes": outcome.scenes,
                "words_by": outcome.words_by,
                "words": [
                    [word.text, round(word.start_s, 3), round(word.end_s, 3)] for word in outcome.words
                ],
                "clips": kept,
                "rejected": [
                    (previews.get(one.data_id, one) if one.data_id else one).to_json()
                    for one in outcome.rejected
                ],
                "stage_s": {name: round(seconds, 4) for name, seconds in outcome.stage_s.items()},
            },
        )
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _worked_on(source: RawVideo, settings: Settings, take: Take, folder: Path) -> tuple[VideoOutcome, str]:
    """What became of the source, and the digest of what was fetched, "" of a local file."""
    try:
        with fetched(source, folder) as local:
            return work_on(local, settings, take), sha256_of(local.path) if source.url else ""
    except (FileNotFoundError, PermissionError) as error:
        if not source.url:
            raise
        reason = one_line(error, 400)
        return VideoOutcome(rejected=[Rejection("read", "file", None, None, reason, source=source.name)]), ""


def _written(clip: RawClip, folder: Path) -> dict[str, Any]:
    """The clip's files, and all that the set needs to know of it."""
    name = f"{clip.data_id}.mp4"
    sound = clip.waveform[:, : round(clip.duration_s * clip.rate_hz)]
    write_mp4(folder / name, clip.frames, clip.fps, sound, clip.rate_hz, {"data_id": clip.data_id})
    for number, span in enumerate(clip.spans):
        if span.end_s - span.start_s >= MIN_SPAN_S:
            first, last = (round(at * SPEECH_RATE_HZ) for at in (span.start_s, span.end_s))
            write_wav(folder / f"{clip.data_id}.{number}.wav", clip.mono[first:last], SPEECH_RATE_HZ)
    return {
        "data_id": clip.data_id,
        "source": clip.source,
        "start_s": round(clip.start_s, 4),
        "num_frames": len(clip.frames),
        "fps": clip.fps,
        "height": clip.frames.shape[1],
        "width": clip.frames.shape[2],
        "text": clip.text,
        "caption_by": clip.caption_by,
        "words_by": clip.words_by,
        "spans": [_span_json(asdict(span), clip.duration_s) for span in clip.spans],
        "given": {"speaker": clip.given.speaker, "reference": clip.given.reference},
        "measures": _plain(clip.measures),
        "labels": _plain(clip.labels),
        "bits": picture_bits(clip.frames),
        "print": sound_print(clip.mono),
        "track": picture_track(clip.frames, clip.fps),
    }


def _span_json(span: dict[str, Any], duration_s: float) -> dict[str, Any]:
    start = round(min(span["start_s"], duration_s - 0.01), 4)
    return {**span, "start_s": start, "end_s": round(min(duration_s, max(span["end_s"], start + 0.01)), 4)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}


def _previewed(found: Rejection, folder: Path) -> Rejection:
    """The rejection with a small clip of what was rejected, with its sound."""
    import cv2

    clip = found.clip
    assert clip is not None
    scale = PREVIEW_SIDE / max(clip.frames.shape[1:3])
    height, width = (max(2, round(side * scale) // 2 * 2) for side in clip.frames.shape[1:3])
    frames = np.stack(
        [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip.frames]
    )
    name = f"{clip.data_id}.preview.mp4"
    write_mp4(folder / name, frames, clip.fps, clip.mono, SPEECH_RATE_HZ)
    return replace(found, preview=name)
