"""`nava plan`'s memory beside what steps of small models hold:

    python -m experiments.benchmarks.planned_memory --out docs/planned_memory.json

Training by the pretraining trainer, fine-tuning of an adapter by the same trainer, a round's optimizer step
by alignment's, rollouts and generation, each measured on the CPU from the tensors that it makes (attention by
the flash kernel, as on a GPU). Prints a table; --out FILE keeps it as JSON, case by case, and the same
command measures those that are not in it. Exit code 1: some case is more than a tenth from its plan.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.benchmarks.full_step import flash_attention, one_rank, registered_spec
from experiments.benchmarks.harness import Row, facts, make_parser, parse, printed
from experiments.benchmarks.random_model import latent_sizes, random_batch, random_clip, random_model
from experiments.errors import CHECK_FAILED
from finetune.lora import DEFAULT, LoraConfig, inject, lower_base, reset
from finetune.policy import LoraPolicy
from finetune.recipe import AlignConfig
from finetune.trainer import Trainer
from finetune.types import Advantage, Rollout, RolloutsWithAdvantage
from pretrain.data.stream.sample import Sample
from pretrain.data.stream.sample_set import SampleSet
from pretrain.dropout import NO_DROPOUT
from pretrain.dry_run import one_step
from pretrain.files import read_json, write_json
from pretrain.flow.guidance import NO_GUIDANCE
from pretrain.flow.solvers import Latents
from pretrain.launch.stage_run import StageRun
from pretrain.memory_meter import MemoryMeter, tensors_of
from pretrain.model.args import ModelArgs
from pretrain.model.flavors import build_model, flavor
from pretrain.model.flops import ClipShape
from pretrain.model.plan import clip_shape
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_setup import Checkpointing, PlannedWork, Setup
from pretrain.model.plan_sizes import Base
from pretrain.objective import ObjectiveConfig
from pretrain.progress import track
from pretrain.recipe import ParallelConfig, PretrainConfig
from pretrain.sampling import LatentRates, SamplerConfig, integrate, sample
from pretrain.titan.ema import Ema
from pretrain.titan.ranks import join, shard
from pretrain.titan.train_spec import train_spec
from pretrain.titan.trainer import PretrainTrainer
from pretrain.types import Task, Velocity

CPU = torch.device("cpu")
MIB = 2**20
PACKAGES = "torchtitan", "peft"
LIMIT = 0.1  # of what is planned
RATES = LatentRates(6.0, 25.0)
COLUMNS = {
    "measured MiB": "measured_mib",
    "plan MiB": "planned_mib",
    "measured/plan": "measured_over_planned",
}


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """One step of a small model on one clip."""

    work: PlannedWork
    flavor: str = "mini"
    checkpointing: Checkpointing = "none"
    base: Base = "fp32"
    rank: int = 8
    micro_batches: int = 2  # of training
    one_unit: bool = False  # blocks are gathered and reduced together
    guided: bool = False  # by the release's sampler; else Euler's, one pass a step
    text: int = 64  # states
    frames: int = 25
    side: int = 256  # pixels

    @property
    def name(self) -> str:
        parts = [self.flavor, self.work]
        if self.work not in ("rollout", "generate"):
            parts.append(self.checkpointing)
        if self.work != "train":
            parts.append(self.base)
        if self.work in ("lora", "align"):
            parts.append(f"rank {self.rank}")
        parts += ["one micro-batch"] if self.micro_batches == 1 else []
        parts += ["one unit"] if self.one_unit else []
        parts += ["guided"] if self.guided else []
        return f"{' '.join(parts)}, {self.frames} frames, {self.text} text"

    @property
    def shape(self) -> ClipShape:
        return clip_shape(flavor(self.flavor), self.frames, self.side, self.side, 24.0, self.text)

    def setup(self) -> Setup:
        """What the plan is asked."""
        return Setup(
            work=self.work,
            checkpointing=self.checkpointing,
            base=self.base,
            rank=self.rank,
            micro_batches=self.micro_batches,
            guided=self.guided,
            one_unit=self.one_unit,
            on_cpu=True,
        )

    def planned(self) -> dict[str, float]:
        """Bytes by part."""
        return memory_parts(flavor(self.flavor), self.shape, self.setup())

    def clip(self) -> Sample:
        sizes = latent_sizes(self.frames, self.side, self.side)
        return random_clip(flavor(self.flavor), self.shape, sizes)

    def parallel(self) -> ParallelConfig:
        return ParallelConfig(activation_checkpointing=self.checkpointing, shard_blocks=not self.one_unit)

    def sampler(self) -> SamplerConfig:
        if self.guided:
            return SamplerConfig(steps=4)
        return SamplerConfig(solver="euler", steps=2, guidance=NO_GUIDANCE)


def _grid() -> tuple[MemoryCase, ...]:
    modes: tuple[Checkpointing, ...] = ("none", "selective", "full")
    bases: tuple[Base, ...] = ("fp32", "int8")
    works: tuple[PlannedWork, ...] = ("lora", "align")
    found = [
        MemoryCase(work="train", flavor=name, checkpointing=mode, micro_batches=count)
        for name in ("debug", "mini")
        for mode in modes
        for count in (1, 2)
    ]
    for work in works:
        found += [
            MemoryCase(work=work, base=base, rank=rank, checkpointing=mode)
            for mode in modes
            for base in bases
            for rank in (8, 32)
        ]
        found += [
            MemoryCase(work=work, flavor="debug", base=base, checkpointing=mode)
            for mode in modes
            for base in bases
        ]
    everything: tuple[Base, ...] = ("fp32", "bf16", "int8")
    sampling: tuple[PlannedWork, ...] = ("rollout", "generate")
    for base in everything:
        found += [
            MemoryCase(work=work, base=base, guided=guided) for work in sampling for guided in (False, True)
        ]
    found += [MemoryCase(work="generate", flavor="debug", guided=guided) for guided in (False, True)]
    found += [MemoryCase(work=work, checkpointing="full", base="bf16") for work in works]
    found += [
        MemoryCase(work=work, checkpointing=mode, base="int8", rank=32, one_unit=True)
        for work in works
        for mode in modes
    ]
    others: tuple[Base, ...] = ("fp8", "nf4")
    found += [MemoryCase(work="generate", base=base) for base in others]
    larger: dict[str, Any] = {"text": 512, "frames": 49}
    found += [
        MemoryCase(work="lora", base="nf4"),
        MemoryCase(work="train", checkpointing="full", **larger),
        MemoryCase(work="lora", checkpointing="full", base="int8", rank=32, **larger),
        MemoryCase(work="align", checkpointing="full", base="int8", rank=32, **larger),
        MemoryCase(work="generate", base="int8", **larger),
    ]
    return tuple(found)


CASES = _grid()


class AdapterTrainer(PretrainTrainer):
    """The pretraining trainer; with `lora` of an adapter, as finetune.sft.trainer.FinetuneTrainer, on a base
    of zeros that is nowhere on disk."""

    def __init__(self, run: StageRun, clip: Sample, lora: LoraConfig | None) -> None:
        self.lora, self.frozen = lora, lora is not None
        super().__init__(run, {"dry": SampleSet("dry", [clip])}, lambda metrics, step: None)

    def spec(self, sets: dict[str, SampleSet]):
        return train_spec(self.run, sets, self._adapted) if self.lora else super().spec(sets)

    def first_weights(self) -> None:
        if self.lora:
            _zero(self.model)
        else:
            super().first_weights()

    def first_average(self) -> Ema:
        return Ema(self.model, self.run.config.ema_decay, only_trained=self.frozen)

    def _adapted(self, args: ModelArgs) -> nn.Module:
        assert self.lora is not None
        model = inject(build_model(args), self.lora, (DEFAULT,))
        model.init_weights = lambda **_: None  # type: ignore[method-assign]
        return model


def training(case: MemoryCase) -> int:
    """A step of all weights, or of an adapter."""
    lora = LoraConfig(rank=case.rank, base=case.base) if case.work == "lora" else None
    config = PretrainConfig(flavor=case.flavor, objective=ObjectiveConfig(dropout=NO_DROPOUT))
    config = replace(one_step(config, 1), parallel=case.parallel())
    with tempfile.TemporaryDirectory() as folder, one_rank(), registered_spec():
        run = StageRun(config=config, stage="stage1", latents=Path(folder), out=Path(folder))
        trainer = AdapterTrainer(run, case.clip(), lora)
        trainer.gradient_accumulation_steps = case.micro_batches
        assert trainer.dataloader is not None
        batch = next(iter(trainer.batch_generator(trainer.dataloader)))
        states = tensors_of(trainer.model, next(iter(trainer.optimizers)))
        try:
            with flash_attention(), MemoryMeter([*states, *trainer.ema.weights.values()]) as meter:
                trainer.step = 1
                trainer.train_step(iter([batch] * case.micro_batches))
        finally:
            trainer.close()
    return meter.peak


def _zero(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


@contextmanager
def learner(case: MemoryCase) -> Iterator[tuple[LoraPolicy, Trainer, AlignConfig]]:
    """A policy as alignment shards it, and its trainer."""
    config = AlignConfig(
        lora=LoraConfig(rank=case.rank, base=case.base), parallel=case.parallel(), num_frames=case.frames
    ).with_phase("nft", prompts_per_round=1, clips_per_prompt=2, epochs=1, steps_per_epoch=1, micro_batch=1)
    with one_rank():
        with torch.device("meta"):
            model = inject(build_model(flavor(case.flavor)), config.lora)
        ranks = join()
        shard(model, ranks, True, config.parallel)
        model.to_empty(device=CPU)
        _zero(model)
        reset(model, config.lora)
        policy = LoraPolicy(model)
        yield policy, Trainer(policy, ranks, config), config


def _held_by(policy: LoraPolicy, trainer: Trainer) -> MemoryMeter:
    return MemoryMeter([*tensors_of(policy.model, trainer.optimizer), *policy.ema.weights.values()])


def rollout_of(case: MemoryCase, clips: int) -> Rollout:
    batch = random_batch(case.clip(), clips, Task.T2AV, CPU)
    assert batch.video and batch.audio
    ids = torch.arange(clips)
    return Rollout(
        batch.video.latents, batch.audio.latents, batch.conditioning, torch.zeros_like(ids), ids, RATES
    )


def aligning(case: MemoryCase) -> int:
    """An optimizer step of NFT, of two micro-batches of a clip."""
    with learner(case) as (policy, trainer, config):
        made = rollout_of(case, 2)
        worth = torch.tensor([1.0, -1.0])
        batch = RolloutsWithAdvantage(made, Advantage(worth, worth, worth != 0, 1.0, 0))
        (objective,) = config.objectives()
        with flash_attention(), _held_by(policy, trainer) as meter:
            trainer.learn(objective, batch, (0, 0))
    return meter.peak


def rolling_out(case: MemoryCase) -> int:
    """Steps of the policy that rolls out, on its shards and in bf16."""
    with learner(case) as (policy, trainer, _):
        made, sampler = rollout_of(case, 1), case.sampler()

        def velocity(video: Any, audio: Any) -> Velocity:
            return policy.guided("old", video, audio, made.conditioning, sampler.guidance)

        with flash_attention(), _held_by(policy, trainer) as meter:
            integrate(velocity, Latents(made.video, made.audio), RATES, sampler)
    return meter.peak


def generating(case: MemoryCase) -> int:
    """Steps of a whole model."""
    model = random_model(flavor(case.flavor), torch.float32, CPU).eval()
    lower_base(model, LoraConfig(base=case.base))
    made = rollout_of(case, 1)
    with flash_attention(), MemoryMeter(tensors_of(model)) as meter:
        sample(model, Latents(made.video, made.audio), made.conditioning, RATES, case.sampler())
    return meter.peak


MEASURES: dict[str, Callable[[MemoryCase], int]] = {
    "train": training,
    "lora": training,
    "align": aligning,
    "rollout": rolling_out,
    "generate": generating,
}


def against_plan(case: MemoryCase, measured_mib: float) -> dict[str, float]:
    """MiB at the peak, measured and planned."""
    planned = sum(case.planned().values()) / MIB
    return {
        "measured_mib": round(measured_mib, 3),
        "planned_mib": round(planned, 3),
        "measured_over_planned": round(measured_mib / planned, 3),
    }


def compared(out: Path | None) -> Iterator[Row]:
    """Each case beside today's plan, measured unless `out` has it by these packages; `out` is written after
    each."""
    about: dict[str, Any] = facts(*PACKAGES)
    before = read_json(out, "name another file") if out and out.exists() else {}
    same = all(before.get(name) == about[name] for name in ("torch", *PACKAGES))
    kept, found = before.get("cases", {}) if same else {}, {}
    for case in track(CASES, len(CASES), "cases measured"):
        row = kept.get(case.name)
        peak = row["measured_mib"] if row else MEASURES[case.work](case) / MIB
        found[case.name] = against_plan(case, peak)
        gc.collect()
        if out:
            write_json(out, {**about, "cases": {**kept, **found}}, indent=1)
        yield case.name, found[case.name]
    if out:
        write_json(out, {**about, "cases": found}, indent=1)


def main() -> int:
    options = parse(make_parser(__doc__, out_required=False))
    found = dict(printed(compared(options.out), COLUMNS))
    off = [name for name, row in found.items() if abs(row["measured_over_planned"] - 1) > LIMIT]
    print("\n".join(f"more than {LIMIT:.0%} from the plan: {name}" for name in off))
    return CHECK_FAILED if off else 0


if __name__ == "__main__":
    sys.exit(main())
