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


class MeasuredPart(NamedTuple):
    """limit_s: of the part's process, from its start to its end."""

    what: str
    limit_s: int
    measure: Measure


PARTS = {
    "correctness": MeasuredPart(
        "forward and backward in fp32 and bf16 against fp64 on the CPU", 100, correctness
    ),
    "train": MeasuredPart("a training step by the trainer", 120, partial(whole_step, "train")),
    "lora": MeasuredPart("a LoRA step, frozen base in bf16", 80, partial(whole_step, "lora")),
    "lora_int8": MeasuredPart("a LoRA step, frozen base in int8", 90, partial(whole_step, "lora_int8")),
    "generate": MeasuredPart("a generation step, one pass", 60, partial(whole_step, "generate")),
    "race_video": MeasuredPart("one block against diffusers' Wan", 60, partial(race_of, False, False)),
    "race_sound": MeasuredPart(
        "one block with sound against diffusers' LTX-2", 60, partial(race_of, True, False)
    ),
    "attention": MeasuredPart("attention kernels", 60, kernels),
    "waits": MeasuredPart("host synchronisations of training and sampling steps", 60, waits),
    "memory": MeasuredPart("peak memory against `nava plan`", 90, memory),
    "race_video_compiled": MeasuredPart("as race_video, both compiled", 120, partial(race_of, False, True)),
    "race_sound_compiled": MeasuredPart("as race_sound, both compiled", 120, partial(race_of, True, True)),
}
