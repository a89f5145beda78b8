"""The pretraining part of a recipe: a frozen tree, written as JSON for the ranks and read back strictly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from pretrain.config import (
    ADDED,
    BELOW_ONE,
    FROM_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    check_bounds,
    nearest,
    to_json,
)
from pretrain.model.context_parallel import check_degree
from pretrain.model.flavors import flavor
from pretrain.model.moments_format import MomentsFormat
from pretrain.model.plan_setup import Checkpointing
from pretrain.objective import ObjectiveConfig
from pretrain.randomness import stable_hash
from pretrain.schedule import StageConfig

Float8Recipe = Literal["none", "tensorwise", "rowwise", "rowwise_with_gw_hp"]


_OPTIMIZER = {"beta1": BELOW_ONE, "beta2": BELOW_ONE, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE}


def check_grad_clip(norm: float, where: str = "") -> None:
    """Raises ValueError unless it is above 0; infinity clips nothing."""
    if not norm > 0:
        raise ValueError(
            f"{where}grad_clip is the largest norm of a gradient and must be above 0, got {norm:g}, with "
            "which nothing would be trained; for no clipping set a very large number, such as 1e9"
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW; the learning rate belongs to the stage. Raises ValueError for numbers that train nothing."""

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # largest global gradient norm; a very large number, such as 1e9, clips nothing
    # 8bit: both moments as codes with a scale per 64 to 256 values, by torchao's rounding; needs torchao
    moments: MomentsFormat = field(default="fp32", metadata={ADDED: True})

    def __post_init__(self) -> None:
        _one_of("optimizer.moments", self.moments, get_args(MomentsFormat))
        check_bounds(self, _OPTIMIZER, "optimizer.")
        check_grad_clip(self.grad_clip, "optimizer.")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When full training states are written, where, and which are kept. Raises ValueError out of range."""

    interval: int = 200  # steps
    # a path or URL (s3://bucket/run) that gets a folder per stage; "" = checkpoint/ in the run's own folder
    folder: str = ""
    asynchronous: bool = True  # training goes on while the state is written
    keep_last: int = 2
    keep_every: int = 0  # also keep steps divisible by this; 0 = none
    # write the state of step 0 and stop: what trainings on other ranks or devices begin with, bit by bit
    create_seed_checkpoint: bool = False

    def __post_init__(self) -> None:
        check_bounds(
            self, {"interval": FROM_ONE, "keep_last": FROM_ONE, "keep_every": NOT_NEGATIVE}, "checkpoint."
        )


@dataclass(frozen=True, kw_only=True)
class StepPolicy:
    """Policy for steps with non-finite loss or gradient, or a gradient spike: skipped and counted.

    Raises ValueError for negative numbers.
    """

    max_skips_in_a_row: int = 10  # more than that stops the run
    # skip where the gradient norm is above this times the running median; 0 = never
    spike_factor: float = 20.0
    spike_window: int = 50  # steps the median is over; no spike is called before the window is full

    def __post_init__(self) -> None:
        check_bounds(
            self,
            {"max_skips_in_a_row": NOT_NEGATIVE, "spike_factor": NOT_NEGATIVE, "spike_window": NOT_NEGATIVE},
            "policy.",
        )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How ranks share the model: FSDP2 over all ranks, or HSDP with `replicas` groups of ranks."""

    replicas: int = 1
    # ranks that hold each micro-batch together, a part of the tokens each; paradigm nava only
    context: int = 1
    # selective: attention's output and what ranks exchange for it are kept, full: a block's input alone; the
    # rest is computed again
    activation_checkpointing: Checkpointing = "none"
    # False: one FSDP unit for all blocks, fewer collectives, for models that fit many times over
    shard_blocks: bool = True
    reshard_after_forward: bool = True  # False is faster where memory allows (always so on CPU ranks)
    compile_blocks: bool = False


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What is measured and recorded of a training while it runs. Raises ValueError for steps and ranks that
    cannot be read."""

    # TFLOP/s of one device, that MFU is a share of; 0 = torchtitan's number for the GPU (dense bf16), and no
    # MFU where it knows none, as on a CPU
    peak_tflops: float = 0.0
    # collectives that NCCL's flight recorder keeps, written to comm_traces/ where one times out; 0 = off
    trace_buf_size: int = 20_000
    # steps to profile, such as "20-22" or "20-22,500": traces of torch's profiler, on GPUs memory snapshots
    profile: str = ""
    profile_ranks: str = "0"  # such as "0,8", or "all"
    profile_warmup: int = 3  # steps before, in which the profiler warms up; torchtitan's profiler_warmup

    def __post_init__(self) -> None:
        if not 0 <= self.peak_tflops < math.inf or self.trace_buf_size < 0 or self.profile_warmup < 0:
            raise ValueError(
                "monitor: peak_tflops, trace_buf_size and profile_warmup must not be negative, got "
                f"{self.peak_tflops}, {self.trace_buf_size}, {self.profile_warmup}"
            )
        self.spans()
        self.profiles(0)

    def spans(self) -> list[tuple[int, int]]:
        """(first, last) steps of each profile, in order."""
        found: list[tuple[int, int]] = []
        for text in filter(None, self.profile.replace(" ", "").split(",")):
            first, dash, last = text.partition("-")
            numbers = first.isdecimal() and (last.isdecimal() or not dash)
            if not numbers or not 0 < int(first) <= int(last or first):
                raise ValueError(f"monitor.profile: expected steps such as 20-22,500, got {self.profile!r}")
            found.append((int(first), int(last or first)))
        found.sort()
        for before, after in pairwise(found):
            if after[0] <= before[1] + 1:
                raise ValueError(
                    f"monitor.profile: {self.profile!r} has steps without one between them; write one range"
                )
        return found

    def profiles(self, rank: int) -> bool:
        """Whether this rank is profiled."""
        if self.profile_ranks == "all":
            return True
        parts = self.profile_ranks.replace(" ", "").split(",")
        if not all(part.isdecimal() for part in parts):
            raise ValueError(
                f"monitor.profile_ranks: expected all or ranks such as 0,8, got {self.profile_ranks!r}"
            )
        return rank in map(int, parts)


_NUMBERS = {
    "global_batch_size": FROM_ONE,
    "local_batch_size": NOT_NEGATIVE,
    "ema_decay": BELOW_ONE,
    "log_every": FROM_ONE,
    "validate_every": NOT_NEGATIVE,
    "validation_samples": NOT_NEGATIVE,
    "shuffle_shards": NOT_NEGATIVE,
    "prefetch": NOT_NEGATIVE,
    "cache_gb": POSITIVE,
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """All of pretraining. Raises ValueError where parts do not fit each other."""

    flavor: str = "mini"
    stages: Mapping[str, StageConfig] = field(
        default_factory=lambda: {
            "stage1": StageConfig(name="stage1"),
            "stage2": StageConfig(
                name="stage2",
                tasks={"T2A": 1.0, "T2AV": 1.5, "TI2AV": 0.5, "TIA2AV": 0.75, "T2V": 0.25},
                sets={"paired": 1.0},
                audio_sets={"hq_audio": 1.0},
            ),
            "stage3": StageConfig(
                name="stage3",
                tasks={"T2AV": 2.0, "TI2AV": 0.5, "TIA2AV": 1.0},
                sets={"curated": 1.0},
                audio_sets={},
            ),
        }
    )
    global_batch_size: int = 32
    local_batch_size: int = 0  # samples per rank and micro-batch; 0 = the rank's whole share, no accumulation
    mix_lengths: bool = False  # True: a step may hold samples of different sizes, padded
    seed: int = 0
    mixed_precision: Literal["fp32", "bf16"] = "bf16"
    # torchtitan's Float8Linear in the blocks, by its recipe_name; needs a GPU of compute capability 8.9
    float8: Float8Recipe = "none"
    ema_decay: float = 0.999  # 0 = no average: what is exported as such are the weights themselves
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    policy: StepPolicy = field(default_factory=StepPolicy)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    deterministic: bool = False  # torchtitan's debug.deterministic: equal bits of equal runs, slower
    log_every: int = 10
    validate_every: int = 0  # steps; 0 = only at the end of a stage
    validation_samples: int = 64  # clips of the set `validation`, of all its sizes; 0 = no validation
    # a path or URL (s3://bucket/latents) with a folder per encoded set; "" = the pipeline's own
    latents: str = ""
    # a set larger than 1 GiB is shuffled within windows of that many shards; 0 = as a whole
    shuffle_shards: int = 16
    prefetch: int = 2  # micro-batches made ahead by a thread, where sets are read shard by shard
    cache_gb: float = 200.0  # a machine's copies of shards from an object store

    def __post_init__(self) -> None:
        flavor(self.flavor)
        for key, stage in self.stages.items():
            if stage.name != key:
                raise ValueError(f"stages.{key}.name: expected {key!r}, got {stage.name!r}")
        _one_of("mixed_precision", self.mixed_precision, ("fp32", "bf16"))
        _one_of("float8", self.float8, get_args(Float8Recipe))
        _one_of(
            "parallel.activation_checkpointing",
            self.parallel.activation_checkpointing,
            ("none", "selective", "full"),
        )
        if self.parallel.context < 1 or self.parallel.replicas < 1:
            raise ValueError(
                f"parallel.context and parallel.replicas must be at least 1, got {self.parallel}"
            )
        check_degree(flavor(self.flavor), self.parallel.context)
        check_bounds(self, _NUMBERS)
        for stage in self.stages.values():
            self.objective.check_trains(stage.tasks, f"stages.{stage.name}.")

    def stage(self, name: str) -> StageConfig:
        """Raises ValueError naming the nearest stage."""
        if name not in self.stages:
            raise ValueError(f"stages: unknown stage {name!r}; {nearest(name, self.stages)}")
        return self.stages[name]

    def local_batch(self, world_size: int) -> int:
        """Samples per micro-batch of a rank or context group. Raises ValueError if not divisible."""
        return local_batch(self.global_batch_size, self.local_batch_size, self.parallel, world_size)


def local_batch(batch: int, local_batch_size: int, parallel: ParallelConfig, world_size: int) -> int:
    """Samples per micro-batch of a rank or context group, of a global batch of `batch`; local_batch_size: 0 =
    the whole share. Raises ValueError if not divisible."""
    holders = world_size // parallel.context
    if world_size % (parallel.context * parallel.replicas):
        degrees = f"parallel.replicas {parallel.replicas} x parallel.context {parallel.context}"
        raise ValueError(f"{degrees} does not divide {world_size} ranks; choose divisors")
    local = local_batch_size or batch // holders
    if local < 1 or batch % (local * holders):
        raise ValueError(
            f"global_batch_size {batch} does not split over {holders} data-parallel ranks x local_batch_size "
            f"{local}; set one of them so that it does"
        )
    return local


def recipe_hash(config: PretrainConfig, stage: str) -> str:
    """Hash of a stage's settings that count: neutral ones (`launch.identity.NEUTRAL`) are left out or at
    their defaults, and so are the other stages."""
    fields = to_json(config)
    fields |= {"stages": {stage: fields["stages"][stage]}, "parallel": to_json(ParallelConfig())}
    fields |= {"local_batch_size": PretrainConfig.local_batch_size}
    fields["policy"] |= {"max_skips_in_a_row": StepPolicy.max_skips_in_a_row}
    if fields["float8"] == "none":  # as a recipe without that field has it
        del fields["float8"]
    for name in (
        "checkpoint",
        "monitor",
        "deterministic",
        "log_every",
        "validate_every",
        "validation_samples",
        "latents",
        "prefetch",
        "cache_gb",
    ):
        del fields[name]
    return f"{stable_hash(fields):016x}"


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name}: unknown value {value!r}; {nearest(value, valid)}")
