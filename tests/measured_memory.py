"""Measures the peak of a debug run's memory on the CPU: `python measured_memory.py` prints JSON lines.

Attention runs by the flash kernel, as on a GPU; the ranks are one, whose collectives torch simulates.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import torch

import pretrain.model.scaled_attention as kernels
import pretrain.titan  # noqa: F401  shows torchtitan the CPU
from finetune.lora import LoraConfig, inject
from finetune.policy import LoraPolicy
from pretrain.data.stream.sample import Sample
from pretrain.dry_run import one_step
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.flow.solvers import Latents
from pretrain.launch.stage_run import StageRun
from pretrain.memory_meter import MemoryMeter, tensors_of
from pretrain.model.flavors import build_model, flavor
from pretrain.model.quantised import halve, quantise_base
from pretrain.recipe import ParallelConfig, PretrainConfig
from pretrain.sampling import LatentRates, SamplerConfig, integrate, sample
from pretrain.titan.dry_run import SET, RehearsingTrainer, SampleSet
from pretrain.titan.ranks import Ranks, shard
from pretrain.titan.train_spec import create_moments
from pretrain.types import Conditioning, Stream, Velocity, cache_flags, num_audio_tokens

FLAVOR, FRAMES, SIDE, TEXT = "mini", 7, 16, 64  # latent frames, latent rows and columns, text tokens
TOKENS = num_audio_tokens(4 * FRAMES - 3, 24.0)
RANK = 8


def training(micro_batches: int) -> int:
    """torchtitan's step of all weights, in bf16."""
    parallel = ParallelConfig(activation_checkpointing="none")
    config = one_step(replace(PretrainConfig(), flavor=FLAVOR, ema_decay=0.99, parallel=parallel), 1)
    folder = Path(mkdtemp())
    args = flavor(FLAVOR)
    clip = Sample(
        "clip",
        torch.randn(48, FRAMES, SIDE, SIDE),
        torch.randn(128, TOKENS),
        6.0,
        torch.randn(TEXT, args.text_width),
        torch.tensor([1]),
        torch.randn(1, 192),
    )
    run = StageRun(config=config, stage="stage1", latents=folder, out=folder)
    trainer = RehearsingTrainer(run, {SET: SampleSet(SET, [clip])}, lambda metrics, step: None)
    trainer.take_every_step()
    assert trainer.dataloader is not None
    batch = next(iter(trainer.batch_generator(trainer.dataloader)))
    trainer.step, trainer.gradient_accumulation_steps = 1, micro_batches
    states = tensors_of(trainer.model, next(iter(trainer.optimizers)))
    with MemoryMeter([*states, *trainer.ema.weights.values()]) as meter:
        trainer.train_step(itertools.repeat(batch))
    return meter.peak


def inputs() -> tuple[Stream, Stream, Conditioning]:
    everyone = torch.ones(1, dtype=torch.bool)
    given = (
        Stream(
            torch.randn(1, 48, FRAMES, SIDE, SIDE), torch.tensor([FRAMES]), torch.full((1, 1), 0.5), 6.0, 6.0
        ),
        Stream(torch.randn(1, 128, TOKENS), torch.tensor([TOKENS]), torch.full((1, 1), 0.5), 25.0, 6.0),
        Conditioning(
            torch.randn(1, TEXT, flavor(FLAVOR).text_width),
            torch.ones(1, TEXT, dtype=torch.bool),
            torch.randn(1, 1, 192),
            torch.zeros(1, 1, dtype=torch.int64),
            everyone,
            everyone,
        ),
    )
    cache_flags(*given)
    return given


def learner(base: str, checkpointing: str) -> tuple[LoraPolicy, torch.optim.Optimizer]:
    """A policy sharded as alignment shards it, with its optimizer's moments."""
    with torch.device("meta"):
        model = inject(build_model(flavor(FLAVOR)), LoraConfig(rank=RANK, base=base))  # type: ignore[arg-type]
    parallel = ParallelConfig(activation_checkpointing=checkpointing)  # type: ignore[arg-type]
    shard(model, Ranks(0, 1, torch.device("cpu")), True, parallel)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    policy = LoraPolicy(model)
    optimizer = torch.optim.AdamW(policy.parameters, lr=1e-3)
    create_moments(optimizer)
    return policy, optimizer


def held_by(policy: LoraPolicy, optimizer: torch.optim.Optimizer) -> MemoryMeter:
    return MemoryMeter([*tensors_of(policy.model, optimizer), *policy.ema.weights.values()])


def rollouts(base: str) -> int:
    """Two Euler steps of the policy that rolls out, on its shards and in bf16."""
    policy, optimizer = learner(base, "none")
    video, audio, conditioning = inputs()
    sampler = SamplerConfig(solver="euler", steps=2, guidance=NO_GUIDANCE)

    def velocity(some_video: Stream | None, some_audio: Stream | None) -> Velocity:
        return policy.guided("old", some_video, some_audio, conditioning, NO_GUIDANCE)

    with held_by(policy, optimizer) as meter:
        integrate(velocity, Latents(video.latents, audio.latents), LatentRates(6.0, 25.0), sampler)
    return meter.peak


def alignment(base: str, checkpointing: str) -> int:
    """A step of LoRA with a second adapter."""
    policy, optimizer = learner(base, checkpointing)
    given = inputs()
    with held_by(policy, optimizer) as meter:
        old, now = (policy.velocity(role, *given) for role in ("old", "default"))  # type: ignore[arg-type]
        sum((mine - theirs).square().mean() for mine, theirs in zip(now, old, strict=True)).backward()
        optimizer.step()
    return meter.peak


def generation(base: str) -> int:
    """Two Euler steps of a whole model."""
    model = build_model(flavor(FLAVOR)).eval()
    if base == "bf16":
        halve(model)
    elif base != "fp32":
        quantise_base(model, base)  # type: ignore[arg-type]
    video, audio, conditioning = inputs()
    sampler = SamplerConfig(solver="euler", steps=2, guidance=NO_GUIDANCE)
    with MemoryMeter(tensors_of(model)) as meter:
        sample(model, Latents(video.latents, audio.latents), conditioning, LatentRates(6.0, 25.0), sampler)
    return meter.peak


def main() -> None:
    from torchtitan.distributed.utils import init_fake_mode

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29999")
    kernels.CPU_BF16_SCORES = kernels.CPU_FP32_SCORES = 0
    init_fake_mode(1)
    for name, peak in (
        ("train", training(2)),
        ("align fp32 none", alignment("fp32", "none")),
        ("align int8 none", alignment("int8", "none")),
        ("align int8 full", alignment("int8", "full")),
        ("rollout fp32", rollouts("fp32")),
        ("rollout bf16", rollouts("bf16")),
        ("rollout int8", rollouts("int8")),
        ("generate fp32", generation("fp32")),
        ("generate bf16", generation("bf16")),
        ("generate int8", generation("int8")),
    ):
        print(json.dumps({"name": name, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
