"""The settings of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch

from pretrain.config import ADDED
from pretrain.first_frames import FrameFit
from pretrain.flow.guidance import GuidanceScales
from pretrain.model.quantised import QUANTISATIONS
from pretrain.prompt import size_problem
from pretrain.prompt.rows import MAX_SEED, negative_problem, task_problem
from pretrain.sampling import SamplerConfig
from pretrain.types import num_video_latents

MAX_COUNT = 100_000  # clips of a batch, steps of a sampler
MAX_SEEDS = 10_000  # of a prompt
QuantisationName = Literal["", "int8", "fp8", "nf4"]
DeviceName = Literal["auto", "cpu", "cuda"]  # auto: a GPU where there is one


class Placement(Protocol):
    """Settings of what a model is held in, and where."""

    @property
    def bf16(self) -> bool: ...
    @property
    def quantisation(self) -> QuantisationName: ...
    @property
    def device(self) -> DeviceName: ...


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
    task: str = ""  # of rows that do not say: T2AV, TI2AV, TIA2AV, T2A, T2V; "" = from all that a row gives
    negative_prompt: str = ""  # of rows that do not say: what guidance by text leads away from
    fit: FrameFit = "crop"  # how a first frame of another size becomes the clip's
    num_frames: int = 25  # of prompts that do not say
    fps: float = 24.0
    height: int = 64  # pixels
    width: int = 64
    batch_size: int = 64
    seed: int = 0
    seeds: tuple[int, ...] = ()  # a clip of each prompt for each of these, in place of `seed`
    bf16: bool = True
    # maps of the blocks in 8 or 4 bits (pretrain.model.quantised), the rest in bf16; "" = none
    quantisation: QuantisationName = field(default="", metadata={ADDED: True})
    device: DeviceName = "auto"  # of the transformer
    threads: int = 0  # of each process on the CPU, on which its results depend; 0 = its share of the cores
    keep_latents: bool = False  # NAME.safetensors beside each clip

    def __post_init__(self) -> None:
        num_video_latents(self.num_frames)
        for name in ("height", "width"):
            if problem := size_problem(getattr(self, name)):
                raise ValueError(f"{name} {problem}")
        if self.weights not in ("ema", "model"):
            raise ValueError(f"weights must be ema or model, got {self.weights!r}")
        check_placement(self)
        if self.fit not in get_args(FrameFit):
            raise ValueError(f"fit must be one of {', '.join(get_args(FrameFit))}, got {self.fit!r}")
        if self.batch_size < 1 or not 0 < self.fps < float("inf"):
            raise ValueError(f"batch_size and fps must be positive, got {self.batch_size} and {self.fps}")
        for name, value in (("batch_size", self.batch_size), ("sampler.steps", self.sampler.steps)):
            if value > MAX_COUNT:
                raise ValueError(f"{name} must be at most {MAX_COUNT}, got {value:.6g}")
        if not 0 <= self.threads <= 4096:
            raise ValueError(f"threads must be from 0 to 4096, got {self.threads}")
        if self.task and (problem := task_problem(self.task)):
            raise ValueError(f"task: {problem}")
        if self.negative_prompt and (problem := negative_problem(self.negative_prompt)):
            raise ValueError(f"negative_prompt: {problem}")
        self._check_seeds()

    def _check_seeds(self) -> None:
        if len(self.seeds) > MAX_SEEDS:
            raise ValueError(f"seeds must be at most {MAX_SEEDS}, got {len(self.seeds)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice, which would make the same clip twice; leave it out")
        for seed in self.seeds:
            if not 0 <= seed <= MAX_SEED:
                raise ValueError(f"seeds must be from 0 to {MAX_SEED}, got {seed}")


def check_placement(config: Placement) -> None:
    """Raises ValueError for values that no machine has; a GPU is looked for by `device_of`."""
    if config.device not in get_args(DeviceName):
        raise ValueError(f"device must be auto, cpu or cuda, got {config.device!r}")
    if config.quantisation not in ("", *QUANTISATIONS):
        raise ValueError(
            f"quantisation must be {', '.join(QUANTISATIONS)} or empty, got {config.quantisation!r}"
        )
    if config.quantisation and not config.bf16:
        raise ValueError(
            f"quantisation={config.quantisation} computes in bf16, and bf16 is false; leave one of them out"
        )


def device_of(config: Placement) -> torch.device:
    """Raises ValueError for a GPU that is not there."""
    wanted = config.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this torch sees no GPU; set device to auto or cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
