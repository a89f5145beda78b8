"""One whole model on one device: `python -m experiments.benchmarks.full_step --out FILE` (on a GPU; `--flavor
mini` anywhere).

A training step by the real trainer (torchtitan, FSDP2, AdamW; no average), a LoRA step on the frozen model in
bf16 and in int8, sharded as `nava finetune` shards it, and one generation step, on random clips of one size:
seconds, tokens/s, model FLOPs' share of the peak matmul throughput, and peak memory beside what `nava plan`
says.
"""

from __future__ import annotations

import gc
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.benchmarks.harness import (
    Row,
    facts,
    make_parser,
    parse,
    peak_matmul_flops,
    printed,
    repeated,
    summary,
    write,
)
from experiments.benchmarks.random_model import (
    compile_blocks,
    latent_sizes,
    random_batch,
    random_clip,
    random_model,
)
from finetune.lora import DEFAULT, LoraConfig, inject
from pretrain.data.stream.sample import Sample
from pretrain.dry_run import one_step
from pretrain.launch.stage_run import StageRun
from pretrain.memory_meter import MemoryMeter, tensors_of
from pretrain.model import scaled_attention
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape, forward_flops, frozen_training_flops, training_flops
from pretrain.model.plan import clip_shape
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_setup import Checkpointing, Setup
from pretrain.model.plan_sizes import Base
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.recipe import ParallelConfig, PretrainConfig
from pretrain.types import Task, cache_flags

GIB = 2**30
# what a trainer registers with torchtitan, once per process
_REGISTERED = "torchtitan.protocols.train_spec._extra_train_specs"
COLUMNS = {
    "s": "seconds.low",
    "of the peak": "share_of_ceiling",
    "peak GiB": "memory.measured_gib",
    "plan GiB": "memory.planned_gib",
}


@dataclass(frozen=True)
class ModelStep:
    """The model and the clip, in pixels, of a step."""

    flavor: str
    frames: int
    height: int
    width: int
    compiled: bool
    device: torch.device
    checkpointing: Checkpointing = "full"
    context_tokens: int = 512
    rank: int = LoraConfig.rank  # of the adapter

    @property
    def shape(self) -> ClipShape:
        sizes = {"frames": self.frames, "height": self.height, "width": self.width}
        return clip_shape(flavor(self.flavor), **sizes, context_tokens=self.context_tokens)

    @property
    def parallel(self) -> ParallelConfig:
        return ParallelConfig(activation_checkpointing=self.checkpointing, compile_blocks=self.compiled)

    def clip(self) -> Sample:
        return random_clip(
            flavor(self.flavor), self.shape, latent_sizes(self.frames, self.height, self.width)
        )


@dataclass(frozen=True)
class RepeatedStep:
    """A step that can be taken again and again, and its model FLOPs."""

    take: Callable[[], object]
    flop: int
    states: Callable[[], list[Tensor]]  # what lives from step to step
    trained_parameters: int = 0


@contextmanager
def train(step: ModelStep, repeats: int) -> Iterator[RepeatedStep]:
    """Steps of the trainer itself."""
    from pretrain.data.stream.loader import SampleSet
    from pretrain.titan.trainer import PretrainTrainer

    config = one_step(PretrainConfig(flavor=step.flavor, ema_decay=0.0, parallel=step.parallel), 1)
    stage = replace(config.stage("stage1"), steps=repeats + 3)  # the first, those that count, one for memory
    config = replace(config, parallel=step.parallel, stages={"stage1": stage})
    with tempfile.TemporaryDirectory() as folder, one_rank(), registered_spec():
        run = StageRun(config=config, stage="stage1", latents=Path(folder), out=Path(folder))
        trainer = PretrainTrainer(run, {"dry": SampleSet("dry", [step.clip()])}, lambda metrics, step: None)
        assert trainer.dataloader is not None
        batches = trainer.batch_generator(trainer.dataloader)

        def take() -> None:
            trainer.step += 1
            trainer.train_step(batches)

        flop = training_flops(flavor(step.flavor), step.shape)
        try:
            yield RepeatedStep(take, flop, lambda: tensors_of(trainer.model, next(iter(trainer.optimizers))))
        finally:
            trainer.close()


@contextmanager
def lora(step: ModelStep, repeats: int, base: Base = "bf16") -> Iterator[RepeatedStep]:
    """Forward, backward and AdamW of an adapter's weights on the frozen model."""
    from pretrain.titan.ranks import join, shard

    config = LoraConfig(base=base, rank=step.rank)
    with one_rank():
        model = inject(
            random_model(flavor(step.flavor), torch.bfloat16, step.device).eval(), config, (DEFAULT,)
        )
        shard(model, join(), True, step.parallel)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, objective = torch.optim.AdamW(trained, lr=1e-4), ObjectiveConfig()
        corrupted = corrupt(random_batch(step.clip(), 1, Task.T2AV, step.device), objective, 0)

        def take() -> None:
            optimizer.zero_grad()
            sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
            sums.loss(sums.video_count, sums.audio_count, objective.audio_weight).backward()
            optimizer.step()

        flop = frozen_training_flops(flavor(step.flavor), step.shape)
        adapters = sum(parameter.numel() for parameter in trained)
        yield RepeatedStep(take, flop, lambda: tensors_of(model, optimizer), adapters)


@contextmanager
def generate(step: ModelStep, repeats: int) -> Iterator[RepeatedStep]:
    """One forward of one clip; guidance costs as many more as it has directions."""
    model = random_model(flavor(step.flavor), torch.bfloat16, step.device).eval()
    if step.compiled:
        compile_blocks(model)
    corrupted = corrupt(random_batch(step.clip(), 1, Task.T2AV, step.device), ObjectiveConfig(), 0)
    cache_flags(corrupted.video, corrupted.audio, corrupted.conditioning)

    @torch.no_grad()
    def take() -> Tensor | None:
        return model(corrupted.video, corrupted.audio, corrupted.conditioning).video

    yield RepeatedStep(take, forward_flops(flavor(step.flavor), step.shape), lambda: tensors_of(model))


PARTS: dict[str, Callable[[ModelStep, int], AbstractContextManager[RepeatedStep]]] = {
    "train": train,
    "lora": lora,
    "lora_int8": partial(lora, base="int8"),
    "generate": generate,
}


def setup_of(part: str, step: ModelStep) -> Setup:
    """What the plan is asked for a part of PARTS."""
    if part == "generate":
        return Setup(work="generate", base="bf16", guided=False)
    common: dict[str, Any] = {"ema": False, "micro_batches": 1, "checkpointing": step.checkpointing}
    if part == "train":
        return Setup(**common)
    base: Base = "int8" if part == "lora_int8" else "bf16"
    return Setup(work="lora", base=base, rank=step.rank, **common)


def registered_spec() -> AbstractContextManager[Any]:
    """What a trainer registers with torchtitan inside ends with it."""
    return mock.patch.dict(_REGISTERED)


@contextmanager
def one_rank() -> Iterator[None]:
    """This process is the only rank; the process group that is made inside ends with it."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # 0: any that is free
    with mock.patch.dict(os.environ, rank | store):
        try:
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def peak_bytes_of(work: RepeatedStep, device: torch.device) -> int:
    """Bytes of tensors at the peak of a step that is not the first."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work.take()
        return torch.cuda.max_memory_allocated(device)
    with flash_attention(), MemoryMeter(work.states()) as meter:  # a CPU's allocator does not say
        work.take()
    return meter.peak


@contextmanager
def flash_attention() -> Iterator[None]:
    """As on a GPU: no scores are kept."""
    with (
        mock.patch.object(scaled_attention, "CPU_BF16_SCORES", 0),
        mock.patch.object(scaled_attention, "CPU_FP32_SCORES", 0),
    ):
        yield


def against_plan(step: ModelStep, part: str, peak_bytes: int) -> dict[str, float]:
    """GiB of tensors at the peak, measured and planned; the plan's allowance for what is no tensor is left
    out."""
    setup = replace(setup_of(part, step), on_cpu=step.device.type == "cpu")
    parts = memory_parts(flavor(step.flavor), step.shape, setup)
    planned = sum(size for name, size in parts.items() if name != "allowance")
    return {
        "measured_gib": float(f"{peak_bytes / GIB:.4g}"),
        "planned_gib": float(f"{planned / GIB:.4g}"),
        "measured_over_planned": round(peak_bytes / planned, 3),
    }


def measure(step: ModelStep, parts: Sequence[str], repeats: int, peak_flops: float) -> Iterator[Row]:
    """JSON of each part. Peak memory is the part's own, of tensors; on a CPU the process's so far beside
    it."""
    tokens = step.shape.video + step.shape.audio
    for part in parts:
        with PARTS[part](step, repeats) as work:
            seconds = repeated(work.take, repeats, step.device)
            peak_bytes = peak_bytes_of(work, step.device)
            flop, trained = work.flop, work.trained_parameters
            memory = against_plan(step, part, peak_bytes)
        del work
        gc.collect()
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if step.device.type == "cuda":
            held = torch.cuda.max_memory_reserved(step.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(step.device)
        yield (
            part,
            {
                **({"trained_parameters": trained} if trained else {}),
                "seconds": summary(seconds),
                "tokens_per_s": round(tokens / min(seconds), 1),
                "tflop": float(f"{flop / 1e12:.4g}"),
                "share_of_ceiling": float(f"{flop / min(seconds) / peak_flops:.3g}"),
                "memory": memory,
                "process_gib": round(held / GIB, 2),
            },
        )


def main() -> None:
    parser = make_parser(__doc__, device=True)
    parser.add_argument("--flavor", default="nava_6b")
    parser.add_argument("--frames", type=int, default=145)
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--compile", action="store_true")
    options = parse(parser)
    size = {"frames": options.frames, "height": options.height, "width": options.width}
    step = ModelStep(options.flavor, **size, compiled=options.compile, device=options.device)
    peak_flops = peak_matmul_flops(torch.bfloat16, options.device)
    found: dict[str, Any] = {
        **facts("diffusers", device=options.device),
        "flavor": options.flavor,
        "clip": size,
        "tokens": step.shape.video + step.shape.audio,
        "compiled": options.compile,
        "ceiling_tflops": round(peak_flops / 1e12, 3),
    }
    found |= printed(measure(step, options.parts, options.steps, peak_flops), COLUMNS)
    write(found, options.out)


if __name__ == "__main__":
    main()
