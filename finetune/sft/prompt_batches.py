"""Fixed prompts with their noise, encoded before training, so that no rank needs the text encoder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.clip_kind import by_kind
from pretrain.codecs.base import Codecs
from pretrain.data.stream.collate import collate, to_av_batch
from pretrain.data.stream.sample import Sample
from pretrain.files import save_tensors, write_json
from pretrain.first_frames import check_first_frames, encode_first_frames, read_first_frames
from pretrain.flow.solvers import Latents
from pretrain.generation.conditions import conditioning_of, noise_of, reference_voices
from pretrain.generation.config import GenerateConfig
from pretrain.prompt import check_files, check_plain, read_prompts
from pretrain.randomness import generator_for
from pretrain.types import VIDEO_FRAMES_PER_LATENT, Conditioning, Task

FOLDER, INDEX = "validation_prompts", "index.json"
_CONDITIONS = tuple(item.name for item in dataclasses.fields(Conditioning))


@dataclass(frozen=True)
class FixedPrompts:
    """Prompts of one size. Noise: video [B, 48, F, H, W], audio [B, 128, L]; first_frame [B, 48, 1, H, W]."""

    names: tuple[str, ...]
    video_hz: float  # latent frames per second
    conditioning: Conditioning
    noise: Latents
    first_frame: Tensor | None = None


def of_samples(samples: Sequence[Sample], seed: int) -> list[FixedPrompts]:
    """A batch for each of these encoded clips, of its text, voices and size."""
    batches = []
    for number, sample in enumerate(samples):
        assert sample.video is not None and sample.audio is not None
        drawn = (
            torch.randn(latents.shape, generator=generator_for(seed, sample.data_id, name))[None]
            for name, latents in (("video", sample.video), ("audio", sample.audio))
        )
        conditioning = to_av_batch(collate([sample], [0], Task.TIA2AV)).conditioning
        name = f"{number:02d}-{''.join(c if c.isalnum() else '_' for c in sample.data_id)[:60]}"
        batches.append(FixedPrompts((name,), sample.video_rate_hz, conditioning, Latents(*drawn)))
    return batches


def of_prompts(path: Path, config: GenerateConfig, codecs: Codecs) -> list[FixedPrompts]:
    """The prompts of a file, batched by kind. Raises ValueError or FileNotFoundError in one line."""
    rows = read_prompts(path)
    check_files(rows)
    check_plain(rows, "fine-tuning")
    check_first_frames(rows, config)
    images, voices = read_first_frames(rows), reference_voices(rows, path, codecs)
    cpu = dataclasses.replace(config, device="cpu")
    return [
        FixedPrompts(
            tuple(row.data_id for row in some),
            config.fps / VIDEO_FRAMES_PER_LATENT,
            conditioning_of(some, codecs, voices),
            noise_of(some, cpu, torch.device("cpu")),
            encode_first_frames(some, images, codecs),
        )
        for some in by_kind(rows, config).values()
    ]


def write_batches(folder: Path, batches: Sequence[FixedPrompts]) -> None:
    """FOLDER/N.safetensors and index.json, written last."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(batches):
        tensors = {name: getattr(batch.conditioning, name) for name in _CONDITIONS}
        assert batch.noise.video is not None and batch.noise.audio is not None
        tensors |= {"noise_video": batch.noise.video, "noise_audio": batch.noise.audio}
        if batch.first_frame is not None:
            tensors["first_frame"] = batch.first_frame
        whole = {name: value.contiguous().clone() for name, value in tensors.items()}  # shared ones as well
        save_tensors(whole, _file(folder, number))
    index = [{"names": batch.names, "video_hz": batch.video_hz} for batch in batches]
    write_json(folder / INDEX, {"batches": index})


def read_batches(folder: Path) -> list[FixedPrompts]:
    """What `write_batches` wrote; none where there is nothing."""
    if not (folder / INDEX).is_file():
        return []
    batches = []
    for number, row in enumerate(json.loads((folder / INDEX).read_text())["batches"]):
        with safe_open(_file(folder, number), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        batches.append(
            FixedPrompts(
                tuple(row["names"]),
                row["video_hz"],
                Conditioning(*(tensors[name] for name in _CONDITIONS)),
                Latents(tensors["noise_video"], tensors["noise_audio"]),
                tensors.get("first_frame"),
            )
        )
    return batches


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.safetensors"
