"""Curation of an encoded set: features of its latents, and the chosen samples as a set of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.curation.looks import Looked, looked_at_in_blocks
from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.manifest import ManifestRow, read_manifest
from pretrain.data.stream.store import LatentStore
from pretrain.jsonl import FieldError
from pretrain.progress import track

CELLS = 2  # latent pictures are averaged over CELLS x CELLS fields
SOUND_PARTS = 4
NAME = "latents"  # of these features


class LatentLook:
    """Features of a sample: latent picture with its motion, latent sound, reference voice."""

    def __init__(self, folder: Path) -> None:
        self._store = LatentStore(folder)

    def __call__(self, number: int) -> Sequence[np.ndarray] | FieldError:
        try:
            sample = self._store[number]
        except ValueError as error:
            return FieldError(number, "sample", str(error))
        voice = sample.speakers.mean(dim=0) if len(sample.speakers) else torch.zeros(sample.speakers.shape[1])
        return _picture(sample.video), _sound(sample.audio), voice.numpy()


def look_at_store(folder: Path, labels: Path | None, work: Path, nproc: int) -> Looked:
    """The samples of an encoded set as rows with the quality of `labels`, a manifest with the same ids.

    Raises ValueError where none of the labels is of this set, or samples lack a modality that others have.
    """
    store = LatentStore(folder)
    facts = [store.index.row(number) for number in range(len(store))]
    if len({(bool(row["frames"]), bool(row["tokens"])) for row in facts}) > 1:
        raise ValueError(
            f"{folder}: samples with and without picture or sound in one set; encode and curate them as two"
        )
    quality = _quality(labels, {row["data_id"] for row in facts}) if labels else {}
    rows = [_row(row, number, folder, quality) for number, row in enumerate(facts)]
    stamps = [[row["data_id"], row["crc32"]] for row in facts]
    return looked_at_in_blocks(rows, range(len(rows)), stamps, partial(LatentLook, folder), NAME, work, nproc)


def write_chosen(
    folder: Path, looked: Looked, chosen: Sequence[int], out: Path, report: Mapping[str, Any]
) -> None:
    """The chosen samples as an encoded set; its manifest.json has the report under `curation`."""
    store = LatentStore(folder)
    with LatentWriter(out, store.codec_id, store.manifest.get("latent_dtype", "float32")) as writer:
        writer.extra = {"curation": {"from": str(folder), **report}}
        for index in track(chosen, len(chosen), "samples copied"):
            writer.add(store[looked.rows[index].line])


def _row(
    facts: Mapping[str, Any], number: int, folder: Path, quality: Mapping[str, dict[str, Any]]
) -> ManifestRow:
    times = tuple(float(span) for span in range(facts["spans"]))  # only their number counts here
    return ManifestRow(
        facts["data_id"],
        folder,
        facts["video_rate_hz"],
        0.0,
        facts["width"],
        facts["height"],
        "",
        times,
        times,
        quality.get(facts["data_id"], {}),
        line=number,
    )


def _quality(labels: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    found = {row.data_id: row.quality for row in read_manifest(labels)[0] if row.data_id in ids}
    if not found:
        raise ValueError(f"{labels}: none of its data_ids is in the encoded set; give the manifest it is of")
    return found


def _picture(video: Tensor | None) -> np.ndarray:
    """[C, F, h, w] -> mean and deviation over time of fields: [2 * C * CELLS^2]."""
    if video is None:
        return np.zeros(1, np.float32)
    fields = torch.nn.functional.adaptive_avg_pool2d(video.transpose(0, 1), CELLS).flatten(1)
    return torch.cat([fields.mean(dim=0), fields.std(dim=0, correction=0)]).numpy()


def _sound(audio: Tensor | None) -> np.ndarray:
    """[C, L] -> mean, deviation, and means of the quarters: [6 * C]."""
    if audio is None:
        return np.zeros(1, np.float32)
    parts = [part.mean(dim=1) for part in torch.tensor_split(audio, SOUND_PARTS, dim=1) if part.shape[1]]
    parts += [parts[-1]] * (SOUND_PARTS - len(parts))
    return torch.cat([audio.mean(dim=1), audio.std(dim=1, correction=0), *parts]).numpy()
