"""The clips that evaluation compares: real ones, their codec round trips, and generated sets, all as
rewards.Clip."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.codecs.base import Codecs
from pretrain.codecs.media import read_media
from pretrain.data.manifest import read_manifest
from pretrain.jsonl import FieldError, scan
from pretrain.prompt import ParsedPrompt, parse
from rewards.types import Clip

FPS, SAMPLE_RATE_HZ = 24.0, 16_000
CODEC_BATCH = 32


@dataclass(frozen=True, eq=False)
class Sample:
    """One clip and what it is: `source` is real, codec, generated or aligned; `kind` is the corpus' (speech,
    dialogue, camera, event)."""

    data_id: str
    source: str
    kind: str
    clip: Clip


def real_samples(manifest: Path, limit: int) -> dict[str, list[Sample]]:
    """Clips of a training manifest by kind, at most `limit` of a kind; rows without speech or without picture
    are left out.

    Raises FileNotFoundError or ValueError in one line for a missing manifest, too many bad rows or an
    unreadable clip.
    """
    samples: dict[str, list[Sample]] = defaultdict(list)
    for row in read_manifest(manifest)[0]:
        kind = row.meta.get("kind", "speech")
        if row.has_video and len(samples[kind]) < limit and parse(row.text).spans:
            references = row.meta.get("reference_paths", ())
            clip = _read(row.data_path, row.text, row.meta, references, manifest.parent, row.data_id)
            samples[kind].append(Sample(row.data_id, "real", kind, clip))
    return dict(samples)


def generated_samples(
    folder: Path, kind: str, limit: int | None = None, source: str = "generated"
) -> list[Sample]:
    """Clips of one generated set (its index.jsonl), the first `limit` of them. Raises FileNotFoundError or
    ValueError in one line."""
    samples = []
    for line, row in islice(scan(folder / "index.jsonl"), limit):
        if isinstance(row, FieldError):
            raise ValueError(row.at(folder / "index.jsonl"))
        if missing := {"data_id", "prompt", "video", "reference_paths", "meta"} - row.keys():
            raise ValueError(
                f"{folder / 'index.jsonl'}:{line} {sorted(missing)[0]}: missing; run `nava generate` again"
            )
        # references are as they were opened: relative to the folder the command was started in
        clip = _read(
            folder / row["video"],
            row["prompt"],
            row["meta"],
            row["reference_paths"],
            Path(),
            row["data_id"],
            kind,
        )
        samples.append(Sample(row["data_id"], source, kind, clip))
    return samples


def codec_samples(samples: Sequence[Sample], codecs: Codecs) -> list[Sample]:
    """Every sample encoded and decoded, same order; sound and picture keep their lengths."""
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        frames, waveform = _content(sample)
        by_shape[len(frames), len(waveform)].append(index)
    answers: list[Sample | None] = [None] * len(samples)
    for indices in by_shape.values():
        for start in range(0, len(indices), CODEC_BATCH):
            batch = indices[start : start + CODEC_BATCH]
            frames, sounds = zip(*(_content(samples[i]) for i in batch), strict=True)
            decoded = codecs.video.decode(codecs.video.encode(torch.from_numpy(np.stack(frames)))).numpy()
            heard = codecs.audio.decode(codecs.audio.encode(torch.from_numpy(np.stack(sounds)))).numpy()
            for i, picture, sound in zip(batch, decoded, heard, strict=True):
                clip = dataclasses.replace(samples[i].clip, frames=picture, waveform=sound[: len(sounds[0])])
                answers[i] = dataclasses.replace(samples[i], source="codec", clip=clip)
    return [answer for answer in answers if answer is not None]


def reference_sounds(samples: Iterable[Sample]) -> dict[str, list[np.ndarray]]:
    """Distinct reference recordings of the samples by voice."""
    found: dict[str, dict[bytes, np.ndarray]] = defaultdict(dict)
    for sample in samples:
        for voice, sound in zip(sample.clip.voices, sample.clip.references, strict=False):
            if sound is not None:
                found[voice][sound.tobytes()] = sound
    return {voice: list(sounds.values()) for voice, sounds in found.items()}


def _content(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    assert sample.clip.frames is not None and sample.clip.waveform is not None
    return sample.clip.frames, sample.clip.waveform


def clip_of(
    frames: np.ndarray | None,
    sound: np.ndarray | None,
    prompt: ParsedPrompt,
    meta: Mapping[str, Any],
    references: Sequence[Path | None],
    name: str,
    fps: float = FPS,
    kind: str = "",
) -> Clip:
    """A decoded clip with what its row knows: spans, references (read once), voices, and where the mouths
    are.

    frames [F, H, W, 3] uint8, sound [S] at 16 kHz; `kind` stands in for that of `meta`. Raises ValueError for
    an unreadable reference.
    """
    moving = (kind or meta.get("kind", "")) == "camera"  # the mouth leaves its box
    boxes = () if moving else meta.get("mouth_boxes", ())
    return Clip(
        waveform=sound,
        sample_rate_hz=SAMPLE_RATE_HZ,
        frames=frames,
        fps=fps,
        prompt=prompt.text,
        spans=tuple(span.text for span in prompt.spans),
        references=tuple(_sound(path) if path else None for path in references),
        voices=tuple(meta.get("voices", ())),
        name=name,
        mouth_boxes=tuple((int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in boxes),
    )


def _read(
    path: Path,
    text: str,
    meta: Mapping[str, Any],
    references: Sequence[str],
    root: Path,
    name: str,
    kind: str = "",
) -> Clip:
    media = read_media(path, fps=FPS, sample_rate_hz=SAMPLE_RATE_HZ)
    opened = [root / reference if reference else None for reference in references]
    return clip_of(media.frames, media.waveform, parse(text), meta, opened, name, kind=kind)


@cache
def _sound(path: Path) -> np.ndarray | None:
    return read_media(path, want_video=False, sample_rate_hz=SAMPLE_RATE_HZ).waveform
