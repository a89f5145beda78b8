"""Clips that evaluation compares: real, codec round trip, generated; all as rewards.Clip."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from experiments.scoring.clips import INDEX, ClipFile, index_clips, manifest_clip
from pretrain.codecs.base import Codecs
from pretrain.data.manifest import read_manifest
from pretrain.media.read import read_media
from pretrain.prompt import parse
from rewards.types import Clip

FPS, SAMPLE_RATE_HZ = 24.0, 16_000
CODEC_BATCH = 32


@dataclass(frozen=True, eq=False)
class SourceClip:
    """A clip with its origin.

    `source` is real, codec, generated or aligned; `kind` is that of the corpus (speech, dialogue, camera,
    event).
    """

    data_id: str
    source: str
    kind: str
    clip: Clip


def real_samples(manifest: Path, limit: int) -> dict[str, list[SourceClip]]:
    """Clips of a training manifest by kind, at most `limit` per kind, only rows with speech and picture.

    Raises FileNotFoundError or ValueError in one line for a missing manifest, too many bad rows or an
    unreadable clip.
    """
    samples: dict[str, list[SourceClip]] = defaultdict(list)
    for row in read_manifest(manifest)[0]:
        kind = row.meta.get("kind", "speech")
        if row.has_video and len(samples[kind]) < limit and parse(row.text).spans:
            # span times removed, because generated clips have none: both are cut at pauses
            file = dataclasses.replace(manifest_clip(row, manifest.parent), span_times=())
            samples[kind].append(SourceClip(row.data_id, "real", kind, _read(file)))
    return dict(samples)


def generated_samples(
    folder: Path, kind: str, limit: int | None = None, source: str = "generated"
) -> list[SourceClip]:
    """The first `limit` clips of a generated set (its index.jsonl); a modality that its task lacks is None.

    Raises FileNotFoundError or ValueError in one line.
    """
    files = islice(index_clips(folder / INDEX, kind=kind), limit)
    return [SourceClip(file.name, source, kind, _read(file, wanted=None)) for file in files]


def codec_samples(samples: Sequence[SourceClip], codecs: Codecs) -> list[SourceClip]:
    """Every sample encoded and decoded, in order; sound and picture keep their lengths."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        frames, waveform = _content(sample)
        by_shape[len(frames), len(waveform)].append(index)
    answers: list[SourceClip | None] = [None] * len(samples)
    for indices in by_shape.values():
        for start in range(0, len(indices), CODEC_BATCH):
            batch = indices[start : start + CODEC_BATCH]
            frames, sounds = zip(*(_content(samples[i]) for i in batch), strict=True)
            decoded = codecs.video.decode(codecs.video.encode(torch.from_numpy(np.stack(frames)))).numpy()
            decoded_sounds = codecs.audio.decode(
                codecs.audio.encode(torch.from_numpy(np.stack(sounds)))
            ).numpy()
            for i, picture, sound in zip(batch, decoded, decoded_sounds, strict=True):
                clip = dataclasses.replace(samples[i].clip, frames=picture, waveform=sound[: len(sounds[0])])
                answers[i] = dataclasses.replace(samples[i], source="codec", clip=clip)
    return [answer for answer in answers if answer is not None]


def reference_sounds(samples: Iterable[SourceClip]) -> dict[str, list[np.ndarray]]:
    """Distinct reference recordings by voice."""
    found: dict[str, dict[bytes, np.ndarray]] = defaultdict(dict)
    for sample in samples:
        for voice, sound in zip(sample.clip.voices, sample.clip.references, strict=False):
            if sound is not None:
                found[voice][sound.tobytes()] = sound
    return {voice: list(sounds.values()) for voice, sounds in found.items()}


def _content(sample: SourceClip) -> tuple[np.ndarray, np.ndarray]:
    assert sample.clip.frames is not None and sample.clip.waveform is not None
    return sample.clip.frames, sample.clip.waveform


def _read(file: ClipFile, wanted: bool | None = True) -> Clip:
    """wanted: None = a modality that the file lacks is None, True = both are needed."""
    media = read_media(
        file.path, fps=FPS, sample_rate_hz=SAMPLE_RATE_HZ, want_video=wanted, want_audio=wanted
    )
    clip = file.clip(media.frames, media.waveform, FPS, SAMPLE_RATE_HZ)
    return dataclasses.replace(clip, mended=media.mended)
