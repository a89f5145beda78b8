"""The clips of a rollout store as files to watch, so that people can vote on what gsb_dpo learns from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.rollout_store import INDEX, RolloutStore
from pretrain.clip_files import marks_of, write_clips
from pretrain.codecs.base import Codecs
from pretrain.files import sha256_of
from pretrain.jsonl import dump
from pretrain.media.errors import MediaError
from pretrain.media.read import read_metadata
from pretrain.owned import add_to_marker
from pretrain.progress import track
from pretrain.types import VIDEO_FRAMES_PER_LATENT

MEDIA = "media"  # folder inside the store


def write_media(store: RolloutStore, codec: Path, codecs: Codecs) -> int:
    """Write media/<clip>.mp4 for every clip; returns how many clips have one.

    A row of the index gets `video`, relative to the store, and `video_sha256`. Files of an interrupted call
    are kept, damaged ones are written again. A clip whose latents are not finite gets no file. `codecs` are
    those of the folder `codec`. Raises ValueError for another codec's latents.
    """
    store.check_codec(codecs, codec)
    marks = marks_of(store.facts.get("checkpoint_id", ""), codecs)
    fps = store.facts["video_hz"] * VIDEO_FRAMES_PER_LATENT
    add_to_marker(store.folder, [f"{MEDIA}/{name}.mp4" for name in store.places])
    rows = []
    for name, row in track(store.places.items(), len(store.places), "clips written as mp4"):
        path = store.folder / MEDIA / f"{name}.mp4"
        if _is_whole(path, {**marks, "data_id": name}, row) or _write(store, name, path, codecs, fps, marks):
            row = {**row, "video": f"{MEDIA}/{name}.mp4", "video_sha256": sha256_of(path)}
        rows.append(row)
    dump(store.folder / INDEX, rows)
    return sum("video" in row for row in rows)


def _write(
    store: RolloutStore, name: str, path: Path, codecs: Codecs, fps: float, marks: Mapping[str, str]
) -> bool:
    # one at a time: clips of a store may have several sizes, and full-size ones fill the memory
    latents = store.rollout([name])
    if not (latents.video.isfinite().all() and latents.audio.isfinite().all()):
        return False
    write_clips(codecs, latents.video, latents.audio, fps, [path], marks)
    return True


def _is_whole(path: Path, marks: Mapping[str, str], row: Mapping[str, Any]) -> bool:
    """True for a file of this clip that is as it was written."""
    if not path.is_file():
        return False
    if known := row.get("video_sha256"):
        return known == sha256_of(path)
    try:
        found = read_metadata(path)
    except MediaError:
        return False
    return all(found.get(key) == value for key, value in marks.items())
