"""The parts in the order in which they are measured, what matters most first, each with a limit."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from experiments.benchmarks.gpu_parts.correctness import correctness
from experiments.benchmarks.gpu_parts.finding import Measure
from experiments.benchmarks.gpu_parts.kernels import kernels
from experiments.benchmarks.gpu_parts.races import race_of
from experiments.benchmarks.gpu_parts.steps import memory, whole_step
from experiments.benchmarks.gpu_parts.waits import waits


class Part(NamedTuple):
    """limit_s: of the part's process, from its start to its end."""

    what: str
    limit_s: int
    measure: Measure


PARTS = {
    "correctness": Part("forward and backward in fp32 and bf16 against fp64 on the CPU", 100, correctness),
    "train": Part("a training step by the trainer", 120, partial(whole_step, "train")),
    "lora": Part("a LoRA step, frozen base in bf16", 80, partial(whole_step, "lora")),
    "lora_int8": Part("a LoRA step, frozen base in int8", 90, partial(whole_step, "lora_int8")),
    "generate": Part("a generation step, one pass", 60, partial(whole_step, "generate")),
    "race_video": Part("one block against diffusers' Wan", 60, partial(race_of, False, False)),
    "race_sound": Part("one block with sound against diffusers' LTX-2", 60, partial(race_of, True, False)),
    "attention": Part("attention kernels", 60, kernels),
    "waits": Part("host synchronisations of training and sampling steps", 60, waits),
    "memory": Part("peak memory against `nava plan`", 90, memory),
    "race_video_compiled": Part("as race_video, both compiled", 120, partial(race_of, False, True)),
    "race_sound_compiled": Part("as race_sound, both compiled", 120, partial(race_of, True, True)),
}
