"""Encodes one set unit by unit: pending units, a unit's samples, and the merge of all units."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.codecs.base import Codecs
from pretrain.data.encoding.clips import ClipReader, MediaClip, Streams, in_order
from pretrain.data.encoding.media_files import files_of, media_digest
from pretrain.data.encoding.merge import write_index, write_manifest
from pretrain.data.encoding.parts import (
    FORMAT,
    INDEX,
    MANIFEST,
    Draft,
    forget_unit,
    list_parts,
    read_part,
    shard_name,
    write_unit,
)
from pretrain.data.encoding.units import ManifestUnits
from pretrain.data.manifest import ManifestRow, check_bad
from pretrain.data.stream.sample import Sample
from pretrain.files import read_json
from pretrain.jsonl import FieldError
from pretrain.prompt import parse
from pretrain.storage import create, is_file, is_remote, local_file, remove_file
from pretrain.types import VIDEO_FRAMES_PER_LATENT

if TYPE_CHECKING:
    from pretrain.data.encoding.config import EncodeConfig

IDENTITY = "encode.json"
LISTED_EVERY_S = 10.0
# fields of the config that change no byte of a sample
_NO_PART_OF_IT = ("audio_only_sets", "max_bad_fraction", "num_readers")


@dataclass(frozen=True)
class SetEncoder:
    """Encodes manifest units into `folder` (or a store). Bytes do not depend on which rank encodes a unit."""

    config: EncodeConfig
    name: str
    manifest: str  # as the user gave it
    units: ManifestUnits
    codec_id: str
    streams: Streams
    folder: Path
    channels: int = 1  # of sound, as the codec has them

    def identity(self) -> dict[str, Any]:
        """What all units of a set have in common."""
        config = {
            name: value
            for name, value in dataclasses.asdict(self.config).items()
            if name not in _NO_PART_OF_IT
        }
        streams = [name for name, used in dataclasses.asdict(self.streams).items() if used]
        identity = {
            "format": FORMAT,
            "codec_id": self.codec_id,
            "manifest_sha256": self.units.sha256,
            "streams": streams,
            **config,
        }
        if self.channels != 1:
            identity["channels"] = self.channels
        return json.loads(json.dumps(identity))

    def claim(self) -> None:
        """Raises ValueError where the folder holds units of another manifest, codec or config."""
        path, identity = self.folder / IDENTITY, self.identity()
        if not is_file(path):
            if is_file(self.folder / MANIFEST):
                raise ValueError(
                    f"{self.folder}: a set that was not made by this command; give --restart to replace it, "
                    "or another place"
                )
            create(path, json.dumps(identity, indent=1) + "\n")
        before = read_json(path, "give --restart to encode anew")  # another encode may have been first
        for name in sorted({*before, *identity}):
            if before.get(name) != identity.get(name):
                found = f"encoded with {before.get(name)}, asked for {identity.get(name)}"
                raise ValueError(f"{path} {name}: {found}; give --restart to encode anew, or another place")

    def finished(self) -> bool:
        return is_file(self.folder / MANIFEST)

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Units of this rank that are still to do."""
        done = list_parts(self.folder)
        return [unit for unit in range(rank, len(self.units), world_size) if unit not in done]

    def verify(self, rank: int = 0, world_size: int = 1) -> Iterator[int]:
        """Verifies this rank's shards, yielding each unit; damaged and missing ones become pending again, and
        those whose clips' files changed since (`media_digest`)."""
        for unit, num_rejected in sorted(list_parts(self.folder).items()):
            if unit % world_size == rank:
                if not self._whole(unit, num_rejected):
                    forget_unit(self.folder, unit, num_rejected)
                yield unit
        if self.finished():
            content = read_json(self.folder / MANIFEST, "remove it and run this again")
            if not _has_sum(self.folder / INDEX, content["index_sha256"]):
                remove_file(self.folder / MANIFEST)

    def encode(self, todo: Sequence[int], codecs: Codecs) -> Iterator[int]:
        """Encodes units in order, yielding the unit per row. Raises ValueError for too many bad rows."""
        reader = ClipReader(
            self.config.buckets,
            self.config.fps,
            self.units.folder,
            codecs.speaker,
            self.streams,
            self.channels,
        )
        tally = _Tally(self)

        def read(item: tuple[int, ManifestRow | FieldError]) -> tuple[int, MediaClip | FieldError]:
            unit, row = item
            return unit, row if isinstance(row, FieldError) else reader(row)

        rows = ((unit, row) for unit in todo for row in self.units.rows(unit))
        with ThreadPoolExecutor(self.config.num_readers) as pool:
            results = in_order(pool, read, rows, self.config.num_readers + self.config.batch_size)
            for unit, clips in itertools.groupby(results, key=lambda item: item[0]):
                for _ in self._encode_unit(unit, (clip for _, clip in clips), codecs, tally):
                    yield unit
        tally.report()

    def finish(self) -> dict[str, Any]:
        """Merges all units into a set; returns its manifest.json. Raises ValueError for too many bad rows."""
        merged = write_index(self.folder, list_parts(self.folder))
        if merged.rejected:
            check_bad(
                self.manifest,
                merged.rejected[0],
                len(merged.rejected),
                self.units.num_rows,
                self.config.max_bad_fraction,
            )
        source = Path(self.manifest).name
        facts = {
            "codec_id": self.codec_id,
            "latent_dtype": self.config.latent_dtype,
            "set": self.name,
            "manifest": source,
        }
        return write_manifest(self.folder, merged, source, facts)

    def _encode_unit(
        self, unit: int, clips: Iterable[MediaClip | FieldError], codecs: Codecs, tally: _Tally
    ) -> Iterator[None]:
        draft, rejected, media = Draft(self.config.latent_dtype), [], self._media(unit)
        batch: list[MediaClip] = []
        for clip in clips:
            if isinstance(clip, FieldError):
                rejected.append(clip)
                tally.check(rejected)
            else:
                tally.note(clip)
                batch.append(clip)
            if len(batch) == self.config.batch_size:
                _add(batch, codecs, self.config.fps, draft)
                batch = []
            yield
        _add(batch, codecs, self.config.fps, draft)
        write_unit(self.folder, unit, draft, rejected, media)

    def _whole(self, unit: int, num_rejected: int) -> bool:
        try:
            part = read_part(self.folder, unit, num_rejected)
        except ValueError:
            return False
        if part.get("media") and part["media"] != self._media(unit):
            return False
        return not part["samples"] or _has_sum(self.folder / shard_name(unit), part["sha256"])

    def _media(self, unit: int) -> str:
        """Digest of the unit's files as they are, "" for those of a store, where it costs a request each."""
        rows = [row for row in self.units.rows(unit) if isinstance(row, ManifestRow)]
        files = files_of(rows, self.units.folder)
        return "" if any(map(is_remote, files)) else media_digest(files)


class _Tally:
    """Known bad rows of all ranks, from the part index names of finished units."""

    def __init__(self, encoder: SetEncoder) -> None:
        self.encoder = encoder
        self.listed, self.elsewhere = float("-inf"), 0
        self.mended: list[int] = []  # lines of the manifest

    def note(self, clip: MediaClip) -> None:
        """Counts a clip whose file has holes."""
        if clip.mended:
            self.mended.append(clip.row.line)

    def report(self) -> None:
        """Logs how many clips have holes that were filled; their samples' `meta` say how."""
        if self.mended:
            logging.getLogger(__name__).warning(
                "%s: %d clips whose files have holes or are interlaced, the first in line %d; `mended` in "
                "their meta says what was done",
                self.encoder.manifest,
                len(self.mended),
                self.mended[0],
            )

    def check(self, rejected: Sequence[FieldError]) -> None:
        encoder, moment = self.encoder, time.monotonic()
        if moment - self.listed > LISTED_EVERY_S:
            self.listed, self.elsewhere = moment, sum(list_parts(encoder.folder).values())
        count = self.elsewhere + len(rejected)
        check_bad(
            encoder.manifest, rejected[0], count, encoder.units.num_rows, encoder.config.max_bad_fraction
        )


def _has_sum(path: Path, sha256: str) -> bool:
    try:
        with local_file(path, sha256):
            return True
    except (ValueError, FileNotFoundError):
        return False


def _add(clips: Sequence[MediaClip], codecs: Codecs, fps: float, draft: Draft) -> None:
    """Encodes clips of equal shape together and adds them in order."""
    if not clips:
        return
    videos = _in_groups([clip.frames for clip in clips], codecs.video.encode)
    audios = _in_groups([clip.waveform for clip in clips], codecs.audio.encode)
    text = codecs.text.encode([parse(clip.row.text) for clip in clips])
    for index, clip in enumerate(clips):
        positions = text.speaker_positions[index][: len(clip.speakers)]
        mended = {"mended": dict(clip.mended)} if clip.mended else {}
        meta = {**clip.row.meta, "text": clip.row.text, "line": clip.row.line, **mended}
        draft.add(
            Sample(
                clip.row.data_id,
                videos[index],
                audios[index],
                fps / VIDEO_FRAMES_PER_LATENT,
                text.states[index][text.mask[index]],
                positions,
                clip.speakers,
                meta,
            )
        )


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
