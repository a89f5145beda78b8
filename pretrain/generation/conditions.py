"""What a batch starts from: encoded prompts, reference voices, noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pretrain.clip_kind import kind_of
from pretrain.codecs.base import Codecs
from pretrain.flow.solvers import Latents
from pretrain.generation.config import GenerateConfig
from pretrain.media.limits import MediaLimits
from pretrain.media.read import read_media
from pretrain.prompt import ParsedPrompt, PromptRow
from pretrain.randomness import generator_for
from pretrain.types import SPEAKER_DIM, Conditioning

# of a reference voice; encoders hear the first 30 s at most
REFERENCE_LIMITS = MediaLimits(seconds=600.0, decoded_bytes=2**30)
_NOTHING = ParsedPrompt(".", (), ())  # stands for a missing negative prompt, which is dropped


def conditioning_of(rows: Sequence[PromptRow], codecs: Codecs, voices: Mapping[Path, Tensor]) -> Conditioning:
    """Encoded prompts and their reference voices; spans without a reference get the null token."""
    encoded = codecs.text.encode([row.prompt for row in rows])
    batch, num_spans = encoded.speaker_positions.shape
    speakers = torch.zeros(batch, num_spans, SPEAKER_DIM)
    for index, row in enumerate(rows):
        for span, path in enumerate(row.reference_paths):
            if path is not None:
                speakers[index, span] = voices[path]
    everywhere = torch.ones(batch, dtype=torch.bool)
    return Conditioning(
        encoded.states, encoded.mask, speakers, encoded.speaker_positions, everywhere, everywhere
    )


def negative_conditioning(rows: Sequence[PromptRow], codecs: Codecs) -> Conditioning | None:
    """Encoded negative prompts, without voices; rows without one have their text dropped, as guidance does.

    None where no row has one.
    """
    if all(row.negative is None for row in rows):
        return None
    plain = [replace(row, prompt=row.negative or _NOTHING, reference_paths=()) for row in rows]
    kept = torch.tensor([row.negative is not None for row in rows])
    return replace(conditioning_of(plain, codecs, {}), text_kept=kept)


def reference_voices(rows: Iterable[PromptRow], prompts: Path, codecs: Codecs) -> dict[Path, Tensor]:
    """Every reference file embedded once, [192]; raises ValueError with the row of one that cannot be."""
    voices: dict[Path, Tensor] = {}
    for row in rows:
        for span, path in enumerate(row.reference_paths):
            if path is None or path in voices:
                continue
            try:
                waveform = read_media(path, want_video=False, limits=REFERENCE_LIMITS).waveform
                assert waveform is not None
                voices[path] = codecs.speaker.embed(torch.from_numpy(waveform))
            except ValueError as error:
                where = "" if str(path) in str(error) else f"{path}: "
                raise ValueError(f"{prompts}:{row.line} spk_wavs[{span}]: {where}{error}") from None
    return voices


def check_texts(rows: Iterable[PromptRow], codecs: Codecs) -> None:
    """Raises ValueError with the row of a prompt, or negative prompt, that the text encoder does not take."""
    for row in rows:
        for key, prompt in (("prompt", row.prompt), ("negative_prompt", row.negative)):
            try:
                if prompt is not None:
                    codecs.text.check(prompt)
            except ValueError as error:
                raise ValueError(f"{row.where} {key}: {error}") from None


def noise_of(
    rows: Sequence[PromptRow],
    config: GenerateConfig,
    device: torch.device,
    seeds: Sequence[int] | None = None,
) -> Latents:
    """Noise of rows of one kind, keyed by (seed, data id), drawn on the CPU: the same in any batch.

    seeds: of each row, default the config's. None of a modality that the rows' kind lacks.
    """
    kind = kind_of(rows[0], config)
    keys = [(seed, row.data_id) for seed, row in zip(seeds or [config.seed] * len(rows), rows, strict=True)]

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator_for(*key, name)) for key in keys]).to(
            device
        )

    return Latents(
        draw("video", kind.video_shape) if kind.video else None,
        draw("audio", kind.audio_shape(config.fps)) if kind.audio else None,
    )
