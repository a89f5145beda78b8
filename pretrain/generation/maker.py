"""Loads a model once and makes clips of it, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pretrain.clip_files import decode_clips, marks_of
from pretrain.clip_kind import kind_of
from pretrain.codecs.base import Codecs, check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.first_frames import encode_first_frames, read_first_frames
from pretrain.flow.solvers import Latents
from pretrain.generation.conditions import (
    conditioning_of,
    negative_conditioning,
    noise_of,
    reference_voices,
)
from pretrain.generation.config import GenerateConfig, device_of
from pretrain.generation.held import lowered
from pretrain.generation.jobs import ClipJob, batches_of
from pretrain.generation.room import CodecWork, no_room
from pretrain.model.checkpoint import ModelFolder, load_model, read_model_folder
from pretrain.model.shell import AVTransformer
from pretrain.prompt import PromptRow
from pretrain.sampling import LatentRates, VelocityModel, sample
from pretrain.types import AUDIO_TOKENS_PER_S, VIDEO_FRAMES_PER_LATENT

NOT_FINITE = "latents that are NaN or infinite; check the model's weights and the guidance scales"


class ModelChange(Protocol):
    """What is done to a loaded model before it is used, such as `finetune.adapters.MergedAdapters`."""

    def marks(self) -> Mapping[str, str]:
        """What says so in the metadata of its clips; no weights are read."""
        ...

    def __call__(self, model: AVTransformer, described: ModelFolder) -> None:
        """Change an fp32 model in place; its parameters may be sharded."""
        ...


@dataclass(frozen=True)
class AsItIs:
    """The model of the folder."""

    def marks(self) -> Mapping[str, str]:
        return {}

    def __call__(self, model: AVTransformer, described: ModelFolder) -> None:
        pass


AS_IT_IS = AsItIs()


@dataclass(frozen=True)
class MadeClip:
    """One clip in memory; a modality that its task has not is None.

    video [48, F, h, w] and audio [128, L] are its latents, frames uint8 [T, H, W, 3], sound [channels, N] at
    the codec's rate. reason: why there is none, "" where there is.
    """

    job: ClipJob
    video: Tensor | None
    audio: Tensor | None
    frames: np.ndarray | None
    sound: np.ndarray | None
    num_frames: int  # that were asked for
    reason: str = ""


class ClipMaker:
    """A model in place with its codecs. Not for several threads at once."""

    def __init__(
        self,
        model: VelocityModel,
        codecs: Codecs,
        config: GenerateConfig,
        device: torch.device,
        marks: Mapping[str, str],
    ) -> None:
        self.model, self.codecs, self.config, self.device = model, codecs, config, device
        self.marks = dict(marks)  # metadata of all its clips
        self.rates = LatentRates(config.fps / VIDEO_FRAMES_PER_LATENT, AUDIO_TOKENS_PER_S)
        self.voices: dict[Path, Tensor] = {}  # [192] each, of references heard before

    @classmethod
    def load(
        cls,
        model: Path,
        codec: Path,
        config: GenerateConfig,
        change: ModelChange = AS_IT_IS,
        place: Callable[[AVTransformer], AVTransformer] | None = None,
    ) -> ClipMaker:
        """place: puts the fp32 model where it computes, in its precision; by default the config's device.

        Raises ValueError or FileNotFoundError in one line for folders that are none or do not fit, and where
        the GPU has no room.
        """
        device = device_of(config)
        described = read_model_folder(model)
        codecs = load_codecs(codec)
        check_fit(described, model, codecs, codec)
        network, described = load_model(model, config.weights)
        change(network, described)
        with no_room(described.args, config):
            network = place(network) if place else lowered(network, config).to(device)
        marks = {**marks_of(described.facts["checkpoint_id"], codecs), **change.marks()}
        if config.quantisation:
            marks["quantisation"] = config.quantisation
        return cls(network, codecs, config, device, marks)

    def make(self, jobs: Sequence[ClipJob]) -> list[MadeClip]:
        """A clip of each job, in order, whatever their kinds; the batches are those of `batches_of`.

        Raises ValueError with the row of a reference or first frame that cannot be read.
        """
        made: dict[str, MadeClip] = {}
        for batch in batches_of(jobs, self.config):
            for clip in self.decode(batch, self.latents(batch)):
                made[clip.job.name] = clip
        return [made[job.name] for job in jobs]

    def latents(self, batch: Sequence[ClipJob], voiced: bool | None = None) -> Latents:
        """Clean latents of jobs of one kind, fp32 on the CPU: video [B, 48, F, h, w], audio [B, 128, L].

        voiced: as of `flow.guidance.guided_velocity`, for ranks that must make equally many forwards.
        """
        rows, config = [job.row for job in batch], self.config
        with self._no_room(batch, "encode"):
            self._hear(rows)
            conditions = conditioning_of(rows, self.codecs, self.voices)
            negative = negative_conditioning(rows, self.codecs)
            first_frames = encode_first_frames(rows, read_first_frames(rows), self.codecs, config, config.fit)
        with self._no_room(batch):
            conditions = conditions.to(self.device)
            noise = noise_of(rows, config, self.device, [job.seed for job in batch])
            made = sample(
                self.model,
                noise,
                conditions,
                self.rates,
                config.sampler,
                None if first_frames is None else first_frames.to(self.device),
                None if negative is None else negative.to(self.device),
                voiced,
            )
        return Latents(*(None if part is None else part.float().cpu() for part in (made.video, made.audio)))

    def decode(self, batch: Sequence[ClipJob], latents: Latents) -> list[MadeClip]:
        """The clips of a batch's latents, decoded together; one that is not finite has that as its reason."""
        parts = [part for part in (latents.video, latents.audio) if part is not None]
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in parts]).all(0)
        whole = Latents(*(_zeroed(part, finite) for part in (latents.video, latents.audio)))
        with self._no_room(batch, "decode"):
            frames, sounds = decode_clips(self.codecs, whole.video, whole.audio)
        return [
            MadeClip(
                job,
                None if latents.video is None else latents.video[place],
                None if latents.audio is None else latents.audio[place],
                None if frames is None else frames[place],
                None if sounds is None else sounds[place],
                kind_of(job.row, self.config).num_frames,
                "" if finite[place] else NOT_FINITE,
            )
            for place, job in enumerate(batch)
        ]

    def _no_room(self, batch: Sequence[ClipJob], work: CodecWork = "") -> AbstractContextManager[None]:
        args, kind = getattr(self.model, "args", None), kind_of(batch[0].row, self.config)
        return no_room(args, self.config, len(batch), kind, work)

    def _hear(self, rows: Sequence[PromptRow]) -> None:
        """Embed references that were not heard before."""
        for row in rows:
            if any(path is not None and path not in self.voices for path in row.reference_paths):
                self.voices |= reference_voices([row], row.file, self.codecs)


def check_fit(described: ModelFolder, model: Path, codecs: Codecs, codec: Path) -> None:
    """Raises ValueError where the codec is not the one that the model knows, by id or width of its text."""
    check_trained_on(codecs, codec, described.facts, model)
    if codecs.text.width != described.args.text_width:
        raise ValueError(
            f"{codec}: text states are {codecs.text.width} wide, {model} takes {described.args.text_width}; "
            "give its codec"
        )


def _zeroed(latents: Tensor | None, finite: Tensor) -> Tensor | None:
    """Zeros in place of clips that are not finite: the others are decoded in the batch they belong to."""
    if latents is None or bool(finite.all()):
        return latents
    return torch.where(finite.view(-1, *[1] * (latents.ndim - 1)), latents, 0.0)
