"""The moments of a step whose memory a plan compares: what must hold whatever the sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.memory_meter import MemoryMeter
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape
from pretrain.model.plan import clip_shape
from pretrain.model.plan_activations import made_by_backward
from pretrain.model.plan_memory import memory_parts
from pretrain.model.plan_setup import Setup
from pretrain.model.plan_sizes import adapter_blocks, adapter_sizes, rounded_map, sizes_of
from pretrain.model.plan_training import gathered_base
from pretrain.model.quantised import pack, unpack

MINI = flavor("mini")
CLIP = clip_shape(MINI, 25, 256, 256, context_tokens=64)
WORKS = st.sampled_from(["train", "lora", "align"])
MODES = st.sampled_from(["none", "selective", "full"])


def total(clip: ClipShape = CLIP, **setup: Any) -> float:
    return sum(memory_parts(MINI, clip, Setup(**setup)).values())


@settings(max_examples=40, deadline=None)
@given(work=WORKS, mode=MODES, gpus=st.sampled_from([1, 8, 64]), rank=st.sampled_from([8, 32]))
def test_a_second_micro_batch_and_one_unit_never_need_less(
    work: Any, mode: Any, gpus: int, rank: int
) -> None:
    given_setup = {"work": work, "checkpointing": mode, "gpus": gpus, "rank": rank}
    one = total(**given_setup, micro_batches=1)
    assert one <= total(**given_setup, micro_batches=2)
    assert one <= total(**given_setup, micro_batches=1, one_unit=True)


def test_recomputing_with_one_micro_batch_does_not_count_what_is_not_there_at_once() -> None:
    """Of all gradients and all kept inputs, a block's backward has those after it and those before it."""
    parts = memory_parts(MINI, CLIP, Setup(micro_batches=1, on_cpu=True))
    blocks = sizes_of(MINI).blocks
    assert parts["gradients"] == 4 * sum(blocks[1:])  # the first block's backward, where most is held
    assert parts["activations_kept"] == 2 * MINI.width * (CLIP.video + CLIP.audio)
    assert parts["gathered_gradients"] == 4 * blocks[1] + 2 * 2 * MINI.width * MINI.ffn_width


def test_alignment_has_whole_gradients_until_its_last_micro_batch_and_fine_tuning_shards() -> None:
    adapters = 4 * adapter_sizes(MINI, 32)
    common: dict[str, Any] = {"gpus": 64, "checkpointing": "none"}
    aligned = memory_parts(MINI, CLIP, Setup(work="align", **common))
    tuned = memory_parts(MINI, CLIP, Setup(work="lora", **common))
    assert aligned["gradients"] == adapters and tuned["gradients"] == pytest.approx(adapters / 64)


def test_blocks_are_gathered_two_at_a_time_with_their_adapters_or_all_as_one_unit() -> None:
    setup = Setup(work="align", base="fp32", rank=8, gpus=8)
    sizes, adapters = sizes_of(MINI), adapter_blocks(MINI, 8)
    root = 2 * sizes.root + 4 * sizes.time
    units = [2 * block + 2 * 2 * adapter for block, adapter in zip(sizes.blocks, adapters, strict=True)]
    assert gathered_base(MINI, setup) == root + 2 * max(units)
    assert gathered_base(MINI, replace(setup, one_unit=True)) == root + sum(units)


@pytest.mark.parametrize("work", ["rollout", "generate"])
def test_the_releases_sampler_holds_more_latents_than_eulers(work: Any) -> None:
    guided, plain = (memory_parts(MINI, CLIP, Setup(work=work, guided=each)) for each in (True, False))
    assert guided["latents"] == 3 * plain["latents"] and guided["block"] == plain["block"]
    wide = replace(CLIP, video=64, audio=1)
    tiny = flavor("debug")
    in_the_solver = memory_parts(tiny, wide, Setup(work="generate", base="int8"))
    assert in_the_solver["block"] == 0.0  # its own step holds more than a pass of so narrow a model


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
def test_a_map_that_becomes_a_weight_holds_what_is_counted(kind: Any) -> None:
    packed, scales = pack(torch.randn(MINI.ffn_width, MINI.width), kind)
    with MemoryMeter([packed, scales]) as meter:
        unpack(packed, scales, kind, torch.bfloat16)
    held = packed.nbytes + scales.nbytes
    assert meter.peak - held == pytest.approx(rounded_map(MINI, kind), rel=0.02)
    assert rounded_map(MINI, "bf16") == 0


def test_a_backward_pass_with_adapters_holds_one_hidden_state_more() -> None:
    tokens = 5000.0
    with_adapters, without = (made_by_backward(MINI, tokens, rank, "int8") for rank in (8, 0))
    assert with_adapters - without == 2 * tokens * MINI.ffn_width
