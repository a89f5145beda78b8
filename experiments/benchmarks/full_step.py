"""One whole model on one device: `python -m experiments.benchmarks.full_step --out FILE` (on a GPU; `--flavor
mini` anywhere).

A training step by the real trainer (torchtitan, FSDP2, AdamW; no average, full checkpointing), a LoRA step on
the frozen model in bf16, and one generation step, on random clips of one size: seconds, tokens/s, model
FLOPs' share of the peak matmul throughput, peak memory.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

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
from finetune.lora import LoraConfig, inject
from pretrain.data.stream.sample import Sample
from pretrain.dry_run import one_step
from pretrain.launch.stage_run import StageRun
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape, forward_flops, frozen_training_flops, training_flops
from pretrain.model.plan import clip_shape
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.recipe import ParallelConfig, PretrainConfig
from pretrain.types import Task

COLUMNS = {"s": "seconds.low", "of the peak": "share_of_ceiling", "peak memory GiB": "peak_memory_gib"}


@dataclass(frozen=True)
class ModelStep:
    """The model and the clip, in pixels, of a step."""

    flavor: str
    frames: int
    height: int
    width: int
    compiled: bool
    device: torch.device

    @property
    def shape(self) -> ClipShape:
        return clip_shape(flavor(self.flavor), self.frames, self.height, self.width)

    def clip(self) -> Sample:
        return random_clip(
            flavor(self.flavor), self.shape, latent_sizes(self.frames, self.height, self.width)
        )


def train(step: ModelStep, repeats: int) -> dict[str, Any]:
    """Steps of the trainer itself."""
    from pretrain.data.stream.loader import SampleSet
    from pretrain.titan.trainer import PretrainTrainer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    parallel = ParallelConfig(activation_checkpointing="full")
    config = one_step(PretrainConfig(flavor=step.flavor, ema_decay=0.0, parallel=parallel), 1)
    stage = replace(config.stage("stage1"), steps=repeats + 2)
    parallel = replace(parallel, compile_blocks=step.compiled)
    config = replace(config, parallel=parallel, stages={"stage1": stage})
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(config=config, stage="stage1", latents=Path(folder), out=Path(folder))
        trainer = PretrainTrainer(run, {"dry": SampleSet("dry", [step.clip()])}, lambda metrics, step: None)
        assert trainer.dataloader is not None
        batches = trainer.batch_generator(trainer.dataloader)

        def work() -> None:
            trainer.step += 1
            trainer.train_step(batches)

        seconds = repeated(work, repeats, step.device)
        trainer.close()
    return {"flop": training_flops(flavor(step.flavor), step.shape), "seconds": seconds}


def lora(step: ModelStep, repeats: int) -> dict[str, Any]:
    """Forward, backward and AdamW of an adapter's weights on the frozen bf16 model, whole blocks
    recomputed."""
    model = inject(random_model(flavor(step.flavor), torch.bfloat16, step.device).eval(), LoraConfig())
    for group in model.block_groups():
        for index, block in enumerate(group):
            group[index] = checkpoint_wrapper(block, preserve_rng_state=False)
    if step.compiled:
        compile_blocks(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, objective = torch.optim.AdamW(trained, lr=1e-4), ObjectiveConfig()
    corrupted = corrupt(random_batch(step.clip(), 1, Task.T2AV, step.device), objective, 0)

    def work() -> None:
        optimizer.zero_grad()
        sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
        sums.loss(sums.video_count, sums.audio_count, objective.audio_weight).backward()
        optimizer.step()

    flop = frozen_training_flops(flavor(step.flavor), step.shape)
    adapters = sum(parameter.numel() for parameter in trained)
    return {
        "flop": flop,
        "seconds": repeated(work, repeats, step.device),
        "trained_parameters": adapters,
    }


def generate(step: ModelStep, repeats: int) -> dict[str, Any]:
    """One forward of one clip; guidance costs as many more as it has directions."""
    model = random_model(flavor(step.flavor), torch.bfloat16, step.device).eval()
    if step.compiled:
        compile_blocks(model)
    corrupted = corrupt(random_batch(step.clip(), 1, Task.T2AV, step.device), ObjectiveConfig(), 0)

    @torch.no_grad()
    def work() -> Tensor | None:
        return model(corrupted.video, corrupted.audio, corrupted.conditioning).video

    flop = forward_flops(flavor(step.flavor), step.shape)
    return {"flop": flop, "seconds": repeated(work, repeats, step.device)}


PARTS: dict[str, Callable[[ModelStep, int], dict[str, Any]]] = {
    "train": train,
    "lora": lora,
    "generate": generate,
}


def measure(step: ModelStep, parts: Sequence[str], repeats: int, peak_flops: float) -> Iterator[Row]:
    """JSON of each part. Peak memory is the part's own; on a CPU it is the process's so far."""
    tokens = step.shape.video + step.shape.audio
    for part in parts:
        found = PARTS[part](step, repeats)
        flop, seconds = found.pop("flop"), found.pop("seconds")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        gc.collect()
        if step.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(step.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(step.device)
        yield (
            part,
            {
                **found,
                "seconds": summary(seconds),
                "tokens_per_s": round(tokens / min(seconds), 1),
                "tflop": round(flop / 1e12, 4),
                "share_of_ceiling": round(flop / min(seconds) / peak_flops, 3),
                "peak_memory_gib": round(memory / 2**30, 2),
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
