"""Clean latents of K clips per prompt on disk: safetensors shards and an index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.types import Rollout
from pretrain.codecs.base import Codecs
from pretrain.data.stream.store import replace_folder
from pretrain.files import read_json, save_tensors, write_json
from pretrain.jsonl import FieldError, dump, scan
from pretrain.prompt import PromptRow
from pretrain.randomness import stable_hash
from pretrain.sampling import LatentRates
from pretrain.types import Conditioning

INDEX, META = "index.jsonl", "store.json"
SHARD = 64  # clips


def clip_id(data_id: str, k: int) -> str:
    return f"{data_id}-k{k}"


def write_store(folder: Path, rows: Sequence[PromptRow], clips: Rollout, facts: dict[str, Any]) -> None:
    """Replace `folder` by the store of these clips, K adjacent clips per row.

    `facts`: model, codec and seed of the clips. An index row has data_id (of the clip), case_id (of the
    prompt), prompt, model ("k0", "k1", ...), sha256 of its latents, and where they lie: the form that `nava
    gsb export --clips` reads.
    """
    count = len(clips.groups) // len(rows)
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    index = []
    tensors = {"video": clips.video, "audio": clips.audio, "sample_ids": clips.sample_ids}
    tensors |= {
        f"conditioning.{name}": getattr(clips.conditioning, name)
        for name in Conditioning.__dataclass_fields__
    }
    for number, places in enumerate(torch.arange(len(clips.groups)).split(SHARD)):
        save_tensors(
            {name: value[places].contiguous() for name, value in tensors.items()},
            partial / f"{number:05d}.safetensors",
        )
        for place, position in enumerate(places.tolist()):
            row, k = rows[position // count], position % count
            latents = clips.video[position].numpy().tobytes() + clips.audio[position].numpy().tobytes()
            index.append(
                {
                    "data_id": clip_id(row.data_id, k),
                    "case_id": row.data_id,
                    "prompt": row.prompt.text,
                    "model": f"k{k}",
                    "sha256": hashlib.sha256(latents).hexdigest(),
                    "shard": number,
                    "place": place,
                    "meta": row.meta,
                    "reference_paths": [str(path) if path else "" for path in row.reference_paths],
                }
            )
    dump(partial / INDEX, index)
    write_json(partial / META, {**facts, "video_hz": clips.rates.video_hz, "audio_hz": clips.rates.audio_hz})
    # readers see the previous or the complete store, never a partial one
    replace_folder(partial, folder)


@dataclass(frozen=True)
class RolloutStore:
    """Random access to a store. `places`: clip -> its row of the index."""

    folder: Path
    places: dict[str, dict[str, Any]]
    facts: dict[str, Any]

    @cached_property
    def _files(self) -> dict[int, Any]:
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
        """The clips in this order. Raises ValueError for a damaged shard."""
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
        )

    def _row(self, shard: int, place: int) -> dict[str, Tensor]:
        path = self.folder / f"{shard:05d}.safetensors"
        try:
            if shard not in self._files:
                self._files[shard] = safe_open(path, "pt")
            file = self._files[shard]
            return {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118 (no mapping)
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
