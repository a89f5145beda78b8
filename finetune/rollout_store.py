"""Clean latents of K clips per prompt on disk: safetensors shards and an index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.types import Rollout, take
from pretrain.codecs.base import Codecs
from pretrain.files import read_json, save_tensors, write_json
from pretrain.jsonl import FieldError, dump, scan
from pretrain.owned import owned_folder
from pretrain.prompt import PromptRow
from pretrain.randomness import stable_hash
from pretrain.sampling import LatentRates
from pretrain.types import Conditioning

STORES = "rollout"  # whose folders are replaced
INDEX, META = "index.jsonl", "store.json"
SHARD = 64  # clips
FIRST_FRAME = "first_frame"  # in shards of clips with given first frames only


def clip_id(data_id: str, k: int) -> str:
    return f"{data_id}-k{k}"


def write_store(
    folder: Path, rows: Sequence[PromptRow], clips: Rollout | Sequence[Rollout], facts: dict[str, Any]
) -> None:
    """Replace `folder` by the store of these clips, K adjacent clips per row.

    Several rollouts, each of clips of one kind, follow the rows' order; a shard holds clips of one. `facts`:
    model, codec and seed of the clips. An index row has data_id (of the clip), case_id (of the prompt),
    prompt, model ("k0", "k1", ...), sha256 of its latents, and where they lie: the form that `nava gsb export
    --clips` reads.
    """
    parts = [clips] if isinstance(clips, Rollout) else list(clips)
    count = sum(len(part.groups) for part in parts) // len(rows)
    index: list[dict[str, Any]] = []
    shards = [take(part, places) for part in parts for places in torch.arange(len(part.groups)).split(SHARD)]
    # readers see the previous or the complete store, never a partial one
    with owned_folder(folder, STORES) as partial:
        for number, shard in enumerate(shards):
            save_tensors(_tensors(shard), partial / f"{number:05d}.safetensors")
            for place in range(len(shard.groups)):
                row, k = rows[len(index) // count], len(index) % count
                index.append(_index_row(row, k, number, place, shard))
        dump(partial / INDEX, index)
        rates = parts[0].rates
        write_json(partial / META, {**facts, "video_hz": rates.video_hz, "audio_hz": rates.audio_hz})


def _tensors(clips: Rollout) -> dict[str, Tensor]:
    tensors = {"video": clips.video, "audio": clips.audio, "sample_ids": clips.sample_ids}
    if clips.given is not None:
        tensors[FIRST_FRAME] = clips.first_frame
    for name in Conditioning.__dataclass_fields__:
        tensors[f"conditioning.{name}"] = getattr(clips.conditioning, name)
    return {name: value.contiguous() for name, value in tensors.items()}


def _index_row(row: PromptRow, k: int, shard: int, place: int, clips: Rollout) -> dict[str, Any]:
    latents = clips.video[place].numpy().tobytes() + clips.audio[place].numpy().tobytes()
    return {
        "data_id": clip_id(row.data_id, k),
        "case_id": row.data_id,
        "prompt": row.prompt.text,
        "model": f"k{k}",
        "sha256": hashlib.sha256(latents).hexdigest(),
        "shard": shard,
        "place": place,
        "meta": row.meta,
        "reference_paths": [str(path) if path else "" for path in row.reference_paths],
        **({"image_path": str(row.image_path)} if row.image_path else {}),
    }


class StoredKind(NamedTuple):
    """Shapes of a clip's latents, and whether its first frame was given."""

    video: tuple[int, ...]
    audio: tuple[int, ...]
    first_frame: bool


@dataclass(frozen=True)
class RolloutStore:
    """Random access to a store. `places`: clip -> its row of the index."""

    folder: Path
    places: dict[str, dict[str, Any]]
    facts: dict[str, Any]

    @cached_property
    def _files(self) -> dict[int, Any]:
        return {}

    @cached_property
    def _kinds(self) -> dict[int, StoredKind]:
        return {}

    def check_codec(self, codecs: Codecs, codec: Path) -> None:
        """Raises ValueError if the latents were not encoded by `codecs`, the folder `codec`."""
        made_with = self.facts.get("codec_id", codecs.codec_id)
        if made_with != codecs.codec_id:
            raise ValueError(
                f"{self.folder}: latents of codec {made_with}, but {codec} is {codecs.codec_id}; roll out "
                "again"
            )

    def case(self, clip: str) -> str:
        return self.places[clip]["case_id"]

    def rollout(self, clips: Sequence[str]) -> Rollout:
        """The clips in this order. Raises ValueError for clips of several kinds and a damaged shard."""
        if len(kinds := set(map(self.kind, clips))) > 1:
            raise ValueError(f"{self.folder}: clips of {len(kinds)} kinds are read one kind at a time")
        found: dict[str, list[Tensor]] = {}
        for clip in clips:
            row = self.places[clip]
            for name, value in self._row(row["shard"], row["place"]).items():
                found.setdefault(name, []).append(value)
        stacked = {name: torch.stack(values) for name, values in found.items()}
        prefix = "conditioning."
        return Rollout(
            video=stacked["video"],
            audio=stacked["audio"],
            sample_ids=stacked["sample_ids"],
            conditioning=Conditioning(
                **{
                    name.removeprefix(prefix): value
                    for name, value in stacked.items()
                    if name.startswith(prefix)
                }
            ),
            groups=torch.tensor([stable_hash(self.case(clip)) for clip in clips], dtype=torch.int64),
            rates=LatentRates(self.facts["video_hz"], self.facts["audio_hz"]),
            first_frame=stacked.get(FIRST_FRAME),  # type: ignore[arg-type]
        )

    def kind(self, clip: str) -> StoredKind:
        """What the clips of one rollout have in common. Raises ValueError for a damaged shard."""
        shard = self.places[clip]["shard"]
        if shard not in self._kinds:
            with self._opened(shard) as file:
                video, audio = (tuple(file.get_slice(name).get_shape()[1:]) for name in ("video", "audio"))
                self._kinds[shard] = StoredKind(video, audio, FIRST_FRAME in file.keys())  # noqa: SIM118
        return self._kinds[shard]

    def by_kind(self) -> list[list[str]]:
        """All clips by kind, in the order of the index."""
        kinds: dict[StoredKind, list[str]] = {}
        for clip in self.places:
            kinds.setdefault(self.kind(clip), []).append(clip)
        return list(kinds.values())

    def _row(self, shard: int, place: int) -> dict[str, Tensor]:
        with self._opened(shard) as file:
            return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (no mapping)

    @contextmanager
    def _opened(self, shard: int) -> Iterator[Any]:
        path = self.folder / f"{shard:05d}.safetensors"
        try:
            if shard not in self._files:
                self._files[shard] = safe_open(path, "pt")
            yield self._files[shard]
        except (SafetensorError, FileNotFoundError, OSError) as error:
            raise ValueError(
                f"{path}: not a whole shard of rollouts ({error}); make the rollouts again"
            ) from None


def open_store(folder: Path) -> RolloutStore:
    """Open a store. Raises FileNotFoundError or ValueError in one line."""
    if not (folder / META).is_file():
        raise FileNotFoundError(f"{folder / META}: no such file; make the rollouts first: `nava rollout`")
    places = {}
    for _, row in scan(folder / INDEX):
        if isinstance(row, FieldError):
            raise ValueError(row.at(folder / INDEX))
        places[row["data_id"]] = row
    return RolloutStore(folder, places, read_json(folder / META, "make the rollouts again"))
