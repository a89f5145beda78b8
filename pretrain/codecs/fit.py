"""Fits the linear codecs: PCA bases and speaker constants on training sets, errors on the validation set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.codecs.base import Codecs
from pretrain.codecs.folder import save_linear
from pretrain.codecs.linear import LinearAudioCodec, audio_blocks, video_blocks
from pretrain.codecs.load import load_codecs
from pretrain.codecs.mel import log_mel
from pretrain.codecs.projection import fit_projection
from pretrain.codecs.speaker import SpectralSpeakerEncoder, is_silent, voice_statistics
from pretrain.config import FROM_ONE, POSITIVE, SHARE, check_bounds
from pretrain.data.manifest import MAX_BAD_FRACTION, ManifestRow, read_manifest
from pretrain.files import write_json
from pretrain.media.read import read_media
from pretrain.owned import owned_folder
from pretrain.progress import track
from pretrain.randomness import generator_for
from pretrain.types import AUDIO_CHANNELS, VIDEO_CHANNELS, num_video_latents

_VALIDATION_CLIPS = 64


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """The linear codec and what it is fitted on. Raises ValueError for numbers out of range."""

    video_sets: tuple[str, ...] = ("paired",)
    audio_sets: tuple[str, ...] = ("audio_only", "hq_audio", "paired")
    validation_set: str = "validation"
    max_clips: int = 300  # read per modality, drawn at random from the sets
    blocks_per_clip: int = 48  # drawn at random from a clip's video blocks
    video_whitening: float = 1.0  # 0 keeps the energies of the principal components, 1 whitens them
    audio_whitening: float = 0.5
    griffin_lim_iterations: int = 16  # 32 and 48 were no better for the recogniser nor for the voice
    text_width: int = 256
    fps: float = 24.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("max_clips", "blocks_per_clip", "text_width")
        shares = dict.fromkeys(("video_whitening", "audio_whitening"), SHARE)
        check_bounds(self, {**dict.fromkeys(counts, FROM_ONE), **shares, "fps": POSITIVE})


def fit_codecs(config: CodecConfig, corpus: Path, out: Path) -> dict[str, Any]:
    """Fits on the corpus' training sets and writes the codec's folder `out` atomically; returns errors.json.

    Raises FileNotFoundError for a missing set, ValueError for media that cannot be read or too little data.
    """
    generator = generator_for(config.seed, "codec")
    blocks = []
    rows = _draw(corpus, config.video_sets, config.max_clips, generator)
    for frames in _read_all(rows, lambda row: _frames(row, config), "codec: clips read"):
        clip = video_blocks(frames).flatten(0, 3)
        blocks.append(clip[torch.randperm(len(clip), generator=generator)[: config.blocks_per_clip]])
    video = fit_projection(torch.cat(blocks), VIDEO_CHANNELS, config.video_whitening)
    del blocks
    sounds = list(
        _read_all(_draw(corpus, config.audio_sets, config.max_clips, generator), _sound, "codec: sounds read")
    )
    audio = fit_projection(
        torch.cat([audio_blocks(sound[None])[0] for sound in sounds]), AUDIO_CHANNELS, config.audio_whitening
    )
    speaker = SpectralSpeakerEncoder.fit(
        torch.stack([voice_statistics(sound) for sound in sounds if not is_silent(sound)])
    )
    parts = {"video": video.tensors(), "audio": audio.tensors(), "speaker": speaker.tensors()}
    with owned_folder(out, "codec") as temporary:
        save_linear(temporary, parts, {"width": config.text_width}, config.griffin_lim_iterations)
        codecs = load_codecs(temporary)
        validation = _draw(corpus, (config.validation_set,), _VALIDATION_CLIPS, generator)
        errors = {"codec_id": codecs.codec_id, **reconstruction_errors(codecs, validation, config)}
        write_json(temporary / "errors.json", errors, indent=1)
    return errors


def reconstruction_errors(
    codecs: Codecs, rows: Sequence[ManifestRow], config: CodecConfig
) -> dict[str, float]:
    """Video PSNR, audio log-mel RMSE (nepers) and explained variances of a round trip without Griffin-Lim."""
    video_error = video_spread = audio_error = audio_spread = 0.0
    num_pixels = num_mels = 0
    assert isinstance(codecs.audio, LinearAudioCodec)
    for row in rows:
        frames, sound = _frames(row, config), _sound(row)
        pixels, again = frames.float(), codecs.video.decode(codecs.video.encode(frames)).float()
        video_error += float((again - pixels).square().sum())
        video_spread += float((pixels - pixels.mean((0, 1, 2, 3))).square().sum())
        num_pixels += pixels.numel()
        mel = log_mel(torch.nn.functional.pad(sound, (0, -len(sound) % 640))[None])
        audio_error += float(
            (codecs.audio.decode_log_mel(codecs.audio.encode(sound[None])) - mel).square().sum()
        )
        audio_spread += float((mel - mel.mean((0, 2), keepdim=True)).square().sum())
        num_mels += mel.numel()
    return {
        "clips": len(rows),
        "video_psnr_db": 10.0 * math.log10(255.0**2 * num_pixels / max(video_error, 1e-9)),
        "video_explained_variance": 1.0 - video_error / video_spread,
        "audio_log_mel_rmse": math.sqrt(audio_error / num_mels),
        "audio_explained_variance": 1.0 - audio_error / audio_spread,
    }


def _draw(corpus: Path, sets: Sequence[str], count: int, generator: torch.Generator) -> list[ManifestRow]:
    rows = [row for name in sets for row in read_manifest(corpus / f"{name}.jsonl")[0]]
    return [rows[index] for index in torch.randperm(len(rows), generator=generator)[:count].tolist()]


def _read_all(
    rows: Sequence[ManifestRow], read: Callable[[ManifestRow], Tensor], what: str
) -> Iterator[Tensor]:
    """What can be read; raises ValueError with the first reason when more than 1 % cannot."""
    bad: list[ValueError] = []
    for row in track(rows, len(rows), what):
        try:
            value = read(row)
        except ValueError as error:
            bad.append(error)
            continue
        yield value
    if len(bad) > MAX_BAD_FRACTION * len(rows):
        raise ValueError(f"{bad[0]} ({len(bad)} of {len(rows)} clips cannot be read)")


def _frames(row: ManifestRow, config: CodecConfig) -> Tensor:
    frames = read_media(row.data_path, fps=config.fps, want_audio=False).frames
    assert frames is not None
    num_video_latents(len(frames))
    return torch.from_numpy(frames)[None]


def _sound(row: ManifestRow) -> Tensor:
    waveform = read_media(row.data_path, want_video=False).waveform
    assert waveform is not None
    return torch.from_numpy(waveform)
