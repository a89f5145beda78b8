"""One whole model on one device: `python -m experiments.benchmarks.full_step --out FILE` (on a GPU; `--flavor
mini` anywhere).

A training step by the real trainer (torchtitan, FSDP2, AdamW; no average, full checkpointing), a LoRA step on
the frozen model in bf16, and one generation step, on random clips of one size: seconds, tokens/s, model
FLOPs' share of the measured matmul ceiling, peak memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from experiments.benchmarks.harness import facts
from experiments.benchmarks.peers.measure import matmul_ceiling
from experiments.benchmarks.peers.timing import seconds_of, summary
from finetune.lora import LoraConfig, inject
from pretrain.data.stream.collate import collate, to_av_batch
from pretrain.data.stream.sample import Sample
from pretrain.dry_run import one_step
from pretrain.files import write_json
from pretrain.launch.stage_run import StageRun
from pretrain.model.flavors import build_model, flavor
from pretrain.model.flops import ClipShape, forward_flops, training_flops
from pretrain.model.plan import clip_shape
from pretrain.model.shell import AVTransformer
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.recipe import ParallelConfig, PretrainConfig
from pretrain.sampling import lower_precision
from pretrain.types import VIDEO_CHANNELS, Task

Parts = dict[str, Callable[[str, ClipShape, Sample, int, bool, torch.device], dict[str, Any]]]


def random_clip(name: str, frames: int, height: int, width: int) -> Sample:
    """Latents of a clip of that size, 512 text states, one voice."""
    shape, args = clip_shape(flavor(name), frames, height, width), flavor(name)
    latents = (VIDEO_CHANNELS, 1 + (frames - 1) // 4, height // 16, width // 16)
    return Sample(
        "clip",
        torch.randn(latents),
        torch.randn(128, shape.audio),
        6.0,
        torch.randn(512, args.text_width),
        torch.tensor([1]),
        torch.randn(1, 192),
    )


def train(
    name: str, shape: ClipShape, clip: Sample, steps: int, compiled: bool, device: torch.device
) -> dict[str, Any]:
    """Seconds of the trainer's own steps, the first left out."""
    from pretrain.data.stream.loader import SampleSet
    from pretrain.titan.trainer import PretrainTrainer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(probe.getsockname()[1]),
        )
    parallel = ParallelConfig(activation_checkpointing="full")
    config = one_step(PretrainConfig(flavor=name, ema_decay=0.0, parallel=parallel), 1)
    stage = replace(config.stage("stage1"), steps=99)
    config = replace(config, parallel=replace(parallel, compile_blocks=compiled), stages={"stage1": stage})
    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(config=config, stage="stage1", latents=Path(folder), out=Path(folder))
        trainer = PretrainTrainer(run, {"dry": SampleSet("dry", [clip])}, lambda metrics, step: None)
        assert trainer.dataloader is not None
        batches = trainer.batch_generator(trainer.dataloader)

        def step() -> None:
            trainer.step += 1
            trainer.train_step(batches)

        step()
        seconds = [seconds_of(step, device) for _ in range(steps)]
        trainer.close()
    return {"flop": training_flops(flavor(name), shape), "seconds": seconds}


def lora(
    name: str, shape: ClipShape, clip: Sample, steps: int, compiled: bool, device: torch.device
) -> dict[str, Any]:
    """Forward, backward and AdamW of an adapter's weights on the frozen bf16 model, whole blocks
    recomputed."""
    model = inject(_model(name, device), LoraConfig())
    for group in model.block_groups():
        for index, block in enumerate(group):
            group[index] = checkpoint_wrapper(block, preserve_rng_state=False)
    _compile(model, compiled)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, objective = torch.optim.AdamW(trained, lr=1e-4), ObjectiveConfig()
    batch = to_av_batch({key: value.to(device) for key, value in collate([clip], [0], Task.T2AV).items()})
    corrupted = corrupt(batch, objective, 0)

    def step() -> None:
        optimizer.zero_grad()
        sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
        sums.loss(sums.video_count, sums.audio_count, objective.audio_weight).backward()
        optimizer.step()

    step()
    adapters = sum(parameter.numel() for parameter in trained)
    flop = 2 * forward_flops(
        flavor(name), shape
    )  # frozen weights take no gradient: forward and the inputs' gradients
    return {
        "flop": flop,
        "seconds": [seconds_of(step, device) for _ in range(steps)],
        "trained_parameters": adapters,
    }


def generate(
    name: str, shape: ClipShape, clip: Sample, steps: int, compiled: bool, device: torch.device
) -> dict[str, Any]:
    """One forward of one clip; guidance costs as many more as it has directions."""
    model = _model(name, device)
    _compile(model, compiled)
    batch = to_av_batch({key: value.to(device) for key, value in collate([clip], [0], Task.T2AV).items()})
    corrupted = corrupt(batch, ObjectiveConfig(), 0)

    def step() -> Tensor | None:
        with torch.no_grad():
            return model(corrupted.video, corrupted.audio, corrupted.conditioning).video

    step()
    return {
        "flop": forward_flops(flavor(name), shape),
        "seconds": [seconds_of(step, device) for _ in range(steps)],
    }


PARTS: Parts = {"train": train, "lora": lora, "generate": generate}


def _model(name: str, device: torch.device) -> AVTransformer:
    with torch.device("meta"):
        model = lower_precision(build_model(flavor(name)), torch.bfloat16)
    model.to_empty(device=device)
    model.init_weights()
    for head in (
        model.head,
        model.head_audio,
    ):  # they start at zero, and gradients of zero are no work to measure
        torch.nn.init.normal_(head.linear.weight, std=0.02)
    return model.eval()


def _compile(model: AVTransformer, wanted: bool) -> None:
    for block in (block for group in model.block_groups() for block in group) if wanted else ():
        block.compile()


def described(measured: dict[str, Any], tokens: int, ceiling: float, device: torch.device) -> dict[str, Any]:
    """JSON of one part; its peak memory is forgotten, so that the next part has its own (of a CPU it is the
    process's so far)."""
    flop, seconds = measured.pop("flop"), measured.pop("seconds")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gc.collect()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    best = min(seconds)
    return {
        **measured,
        "seconds": summary(seconds),
        "tokens_per_s": round(tokens / best, 1),
        "tflop": round(flop / 1e12, 4),
        "share_of_ceiling": round(flop / best / ceiling, 3),
        "peak_memory_gib": round(peak / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", default="nava_6b")
    parser.add_argument("--frames", type=int, default=145)
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device, started = torch.device(options.device), time.perf_counter()
    size = {"frames": options.frames, "height": options.height, "width": options.width}
    shape, clip = clip_shape(flavor(options.flavor), **size), random_clip(options.flavor, **size)
    ceiling, tokens = matmul_ceiling(torch.bfloat16, device), shape.video + shape.audio
    found: dict[str, Any] = {
        **facts("diffusers", device=options.device),
        "flavor": options.flavor,
        "clip": size,
        "tokens": tokens,
        "compiled": options.compile,
    }
    found["ceiling_tflops"] = round(ceiling / 1e12, 3)
    for part in options.parts:
        measured = PARTS[part](options.flavor, shape, clip, options.steps, options.compile, device)
        found[part] = described(measured, tokens, ceiling, device)
        share, peak = found[part]["share_of_ceiling"], found[part]["peak_memory_gib"]
        print(
            f"{part:9} {found[part]['seconds']['low']:8.3f} s  {share:.0%} of the ceiling  {peak} GiB at "
            "the peak",
            flush=True,
        )
    write_json(options.out, found, indent=1)
    print(f"wrote {options.out} after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
