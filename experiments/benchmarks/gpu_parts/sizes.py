"""How large the parts are: `debug` for any machine, `block` at the width of `nava_6b`, `full` all of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.benchmarks.peers.shapes import SHAPES, Shape


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """Models are named flavors, clips are (frames, height, width) in pixels."""

    step_flavor: str  # training, LoRA and generation steps
    step_clip: tuple[int, int, int]
    exact_flavor: str  # held against fp64 on the CPU, where every operation is slow
    exact_clip: tuple[int, int, int]
    memory_flavor: str
    memory_clip: tuple[int, int, int]
    memory_context: int  # text states
    memory_rank: int
    waits_flavor: str  # what is counted does not depend on the size
    waits_clip: tuple[int, int, int]
    races: tuple[Shape, Shape]  # video alone, with sound
    race_s: float  # of a race's training steps; a third more goes to generation steps
    attention: tuple[int, int, int, int]  # heads, their size, tokens, text states
    repeats: int  # of whole steps
    # of the products that the peak is the fastest of; () = as all benchmarks do
    matmul_sides: tuple[int, ...] = ()


_CLIP = (145, 704, 1280)
_RACE = (SHAPES["full_block"], SHAPES["full_block_joint"])
_BLOCK = PartSize(
    step_flavor="nava_6b_two_blocks",
    step_clip=_CLIP,
    exact_flavor="nava_6b_two_blocks",
    exact_clip=(17, 256, 256),
    memory_flavor="nava_6b_two_blocks",
    memory_clip=_CLIP,
    memory_context=512,
    memory_rank=32,
    waits_flavor="mini",
    waits_clip=(25, 64, 64),
    races=_RACE,
    race_s=10.0,
    attention=(24, 128, 32_711, 512),
    repeats=3,
)
SIZES = {
    "debug": PartSize(
        step_flavor="debug",
        step_clip=(5, 64, 64),
        exact_flavor="debug",
        exact_clip=(5, 64, 64),
        memory_flavor="mini",
        memory_clip=(25, 256, 256),
        memory_context=64,
        memory_rank=8,
        waits_flavor="debug",
        waits_clip=(5, 64, 64),
        races=(replace(SHAPES["mini_video"], batch=2), replace(SHAPES["mini_joint"], batch=2)),
        race_s=0.0,
        attention=(3, 64, 128, 24),
        repeats=2,
        matmul_sides=(512,),
    ),
    "block": _BLOCK,
    "full": replace(_BLOCK, step_flavor="nava_6b", repeats=2),
}
