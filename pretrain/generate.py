"""Prompts -> latents -> mp4 with sound and wav, each marked as generated with its checkpoint's id."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.clip_files import marks_of, write_clips
from pretrain.clip_kind import by_kind, check_memory, kind_of
from pretrain.codecs.base import Codecs, check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.first_frames import check_first_frames, encode_first_frames, read_first_frames
from pretrain.flow.guidance import GuidanceScales
from pretrain.flow.solvers import Latents
from pretrain.jsonl import dump
from pretrain.media.read import read_media
from pretrain.media.write import write_wav
from pretrain.model.checkpoint import ModelFolder, load_model
from pretrain.model.shell import AVTransformer
from pretrain.owned import check_owned, owned_folder
from pretrain.progress import track
from pretrain.prompt import PromptRow, check_files, read_prompts, size_problem
from pretrain.randomness import generator_for
from pretrain.sampling import LatentRates, SamplerConfig, lower_precision, sample
from pretrain.types import (
    AUDIO_TOKENS_PER_S,
    SPEAKER_DIM,
    VIDEO_FRAMES_PER_LATENT,
    Conditioning,
    num_video_latents,
)

MAX_COUNT = 100_000  # clips of a batch, steps of a sampler
COMMAND = "generate"  # whose folders are replaced


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How clips are generated; sizes are those of training. Raises ValueError for impossible values."""

    weights: Literal["ema", "model"] = "ema"
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(
            solver="euler",
            steps=14,
            shift=12.0,
            guidance=GuidanceScales(
                text_video=0.0, text_audio=2.0, align_video=2.0, align_audio=0.0, timbre_audio=0.0
            ),
        )
    )
    num_frames: int = 25  # of prompts that do not say
    fps: float = 24.0
    height: int = 64  # pixels
    width: int = 64
    batch_size: int = 64
    seed: int = 0
    bf16: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"  # of the transformer; auto: a GPU where there is one

    def __post_init__(self) -> None:
        num_video_latents(self.num_frames)
        for name in ("height", "width"):
            if problem := size_problem(getattr(self, name)):
                raise ValueError(f"{name} {problem}")
        if self.weights not in ("ema", "model"):
            raise ValueError(f"weights must be ema or model, got {self.weights!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        if self.batch_size < 1 or not 0 < self.fps < float("inf"):
            raise ValueError(f"batch_size and fps must be positive, got {self.batch_size} and {self.fps}")
        for name, value in (("batch_size", self.batch_size), ("sampler.steps", self.sampler.steps)):
            if value > MAX_COUNT:
                raise ValueError(f"{name} must be at most {MAX_COUNT}, got {value:.6g}")


@dataclass(frozen=True)
class _References:
    """What the prompts refer to, read once before work starts."""

    voices: dict[Path, Tensor]  # [192] each
    images: dict[Path, Tensor]  # uint8 [1, H, W, 3] each


Adapt = Callable[[AVTransformer, ModelFolder], Mapping[str, str]]


def _as_it_is(model: AVTransformer, described: ModelFolder) -> Mapping[str, str]:
    return {}


def generate(
    config: GenerateConfig,
    model: Path,
    codec: Path,
    prompts: Path,
    out: Path,
    limit: int | None = None,
    adapt: Adapt = _as_it_is,
) -> dict[str, Any]:
    """Make a clip for every prompt: out/<data_id>.mp4, .wav and index.jsonl. Returns counts and seconds.

    Everything is checked before work starts; `out` is replaced as a whole (`pretrain.owned`). adapt: changes
    the loaded model in place, fp32, and returns what marks its clips. Raises ValueError or FileNotFoundError
    in one line.
    """
    device = device_of(config)
    rows = read_prompts(prompts)[:limit]
    _check(rows, prompts, out)
    check_first_frames(rows, config)
    check_memory(rows, config, config.fps, config.batch_size)
    images = read_first_frames(rows)
    network, described = load_model(model, config.weights)
    codecs = load_codecs(codec)
    check_trained_on(codecs, codec, described.facts, model)
    if codecs.text.width != network.args.text_width:
        raise ValueError(
            f"{codec}: text states are {codecs.text.width} wide, {model} takes {network.args.text_width}; "
            "give its codec"
        )
    references = _References(reference_voices(rows, prompts, codecs), images)
    changed = adapt(network, described)
    if config.bf16:
        lower_precision(network, torch.bfloat16)
    network.to(device)
    marks = {**marks_of(described.facts["checkpoint_id"], codecs), **changed}
    batches = _batches(rows, config)
    started, index = time.perf_counter(), []
    with owned_folder(out, COMMAND) as partial:
        for batch in track(batches, len(batches), f"generate {prompts.stem}"):
            index += _make(batch, config, network, codecs, references, partial, marks)
        order = {row.data_id: position for position, row in enumerate(rows)}
        index.sort(key=lambda row: order[row["data_id"]])
        dump(partial / "index.jsonl", index)
    return {"clips": len(index), "seconds": round(time.perf_counter() - started, 2), **marks}


def _check(rows: Sequence[PromptRow], prompts: Path, out: Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.data_id in seen:
            raise ValueError(
                f"{prompts}:{row.line} data_id: {row.data_id!r} stands twice; give every prompt its own"
            )
        seen.add(row.data_id)
    check_files(rows)
    check_owned(out, COMMAND)


def _batches(rows: Sequence[PromptRow], config: GenerateConfig) -> list[list[PromptRow]]:
    """Rows of one kind together."""
    size, groups = config.batch_size, by_kind(rows, config).values()
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def _make(
    rows: list[PromptRow],
    config: GenerateConfig,
    model: AVTransformer,
    codecs: Codecs,
    references: _References,
    folder: Path,
    marks: dict[str, str],
) -> list[dict[str, Any]]:
    """Sample, decode and write one batch; returns its index rows."""
    rates = LatentRates(config.fps / VIDEO_FRAMES_PER_LATENT, AUDIO_TOKENS_PER_S)
    device = device_of(config)
    conditions = conditioning_of(rows, codecs, references.voices).to(device)
    first_frames = encode_first_frames(rows, references.images, codecs)
    first_frames = None if first_frames is None else first_frames.to(device)
    latents = sample(model, noise_of(rows, config, device), conditions, rates, config.sampler, first_frames)
    assert latents.video is not None and latents.audio is not None
    paths = [folder / f"{row.data_id}.mp4" for row in rows]
    clips = write_clips(codecs, latents.video, latents.audio, config.fps, paths, marks)
    index = []
    for row, (picture, sound) in zip(rows, clips, strict=True):
        name = row.data_id
        write_wav(folder / f"{name}.wav", sound, codecs.audio.sample_rate_hz)
        index.append(
            {
                "data_id": name,
                "prompt": row.prompt.text,
                "video": f"{name}.mp4",
                "audio": f"{name}.wav",
                "num_frames": len(picture),
                "fps": config.fps,
                "duration": len(picture) / config.fps,
                "reference_paths": [str(path) if path else "" for path in row.reference_paths],
                **({"image_path": str(row.image_path)} if row.image_path else {}),
                "meta": row.meta,
            }
        )
    return index


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


def reference_voices(rows: Sequence[PromptRow], prompts: Path, codecs: Codecs) -> dict[Path, Tensor]:
    """Every reference file embedded once, [192]; raises ValueError with the row of one that cannot be."""
    voices: dict[Path, Tensor] = {}
    for row in rows:
        for span, path in enumerate(row.reference_paths):
            if path is None or path in voices:
                continue
            try:
                waveform = read_media(path, want_video=False).waveform
                assert waveform is not None
                voices[path] = codecs.speaker.embed(torch.from_numpy(waveform))
            except ValueError as error:
                where = "" if str(path) in str(error) else f"{path}: "
                raise ValueError(f"{prompts}:{row.line} spk_wavs[{span}]: {where}{error}") from None
    return voices


def device_of(config: GenerateConfig) -> torch.device:
    """Raises ValueError for a GPU that is not there."""
    wanted = config.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this torch sees no GPU; set device to auto or cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def noise_of(rows: Sequence[PromptRow], config: GenerateConfig, device: torch.device) -> Latents:
    """Noise of rows of one kind, keyed by (seed, data id), drawn on the CPU: the same in any batch."""
    kind = kind_of(rows[0], config)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.stack(
            [torch.randn(shape, generator=generator_for(config.seed, row.data_id, name)) for row in rows]
        ).to(device)

    return Latents(draw("video", kind.video_shape), draw("audio", kind.audio_shape(config.fps)))
