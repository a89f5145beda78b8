"""The oracle's own checks: they need nothing but the oracle."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from nava_rederived import Sizes, attend, forward, layout_shapes, random_checkpoint, rotary_angles
from torch import Tensor

SMALL = Sizes(
    width=32,
    num_heads=2,
    ffn_width=48,
    num_double=2,
    num_single=2,
    text_width=20,
    audio_hidden=40,
    time_frequencies=16,
)
FULL = Sizes(
    width=3072,
    num_heads=24,
    ffn_width=14336,
    num_double=10,
    num_single=20,
    text_width=4096,
    audio_hidden=8192,
)
CONTEXT = 9


def inputs(seed: int = 0, batch: int = 2) -> dict[str, Any]:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    video_levels = torch.full((batch, 3), 0.6)
    video_levels[0, 0] = 0.0
    return {
        "video": draw(batch, 48, 3, 4, 6),
        "audio": draw(batch, 128, 7),
        "video_levels": video_levels,
        "audio_levels": torch.tensor([[0.6], [0.3], [0.9]])[:batch].expand(batch, 7),
        "text": draw(batch, 6, 20),
        "text_lengths": torch.tensor([6, 4, 5])[:batch],
        "speakers": draw(batch, 2, 192),
        "speaker_positions": torch.tensor([[1, 3], [2, -1], [0, 4]])[:batch],
        "joined": torch.ones(batch, dtype=torch.bool),
        "context_length": CONTEXT,
    }


def run(case: dict[str, Any], sizes: Sizes = SMALL, seed: int = 1) -> tuple[Tensor, Tensor]:
    video, audio = forward(random_checkpoint(sizes, seed), sizes, **case)
    assert video is not None and audio is not None
    return video, audio


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("split", [False, True])
def test_shapes(split: bool) -> None:
    case = inputs()
    video, audio = run(case, replace(SMALL, split_norm_ffn=split))
    assert video.shape == case["video"].shape and audio.shape == case["audio"].shape
    assert bool(video.isfinite().all()) and bool(audio.isfinite().all()) and 0.1 < float(video.std()) < 30


@pytest.mark.parametrize("split", [False, True])
def test_every_parameter_has_an_effect(split: bool) -> None:
    sizes = replace(SMALL, split_norm_ffn=split)
    case = inputs()
    case["speakers"][0, 1] = 0.0
    ckpt = {name: value.requires_grad_() for name, value in random_checkpoint(sizes, 1).items()}
    video, audio = forward(ckpt, sizes, **case)
    assert video is not None and audio is not None
    ((video * torch.randn_like(video)).sum() + (audio * torch.randn_like(audio)).sum()).backward()
    silent = [
        name for name, value in ckpt.items() if value.grad is None or float(value.grad.abs().max()) < 1e-3
    ]
    assert silent == []


def test_both_suffixes_hold_the_same_weights() -> None:
    leaf, module = random_checkpoint(SMALL, 1), random_checkpoint(SMALL, 1, "module")
    assert "backbone.double_blocks.0.self_attn.q_audio.weight" in leaf
    assert "backbone.double_blocks.0.self_attn_audio.q.weight" in module
    one, other = forward(leaf, SMALL, **inputs()), forward(module, SMALL, audio_suffix="module", **inputs())
    assert one[0] is not None and other[0] is not None and torch.equal(one[0], other[0])


def test_masked_modalities_do_not_see_each_other() -> None:
    case = inputs() | {"joined": torch.tensor([False, True])}
    video, audio = run(case)
    only_video: dict[str, Any] = {**case, "audio": None}
    only_audio: dict[str, Any] = {**case, "video": None}
    video_alone, none = forward(random_checkpoint(SMALL, 1), SMALL, **only_video)
    assert none is None and video_alone is not None
    none, audio_alone = forward(random_checkpoint(SMALL, 1), SMALL, **only_audio)
    assert none is None and audio_alone is not None
    assert gap(video[0], video_alone[0]) < 1e-5 and gap(audio[0], audio_alone[0]) < 1e-5
    assert gap(video[1], video_alone[1]) > 1e-2 and gap(audio[1], audio_alone[1]) > 1e-2


def test_dropped_text_is_not_seen() -> None:
    case = inputs() | {"text_kept": torch.tensor([False, True])}
    other = case | {"text": inputs(seed=5)["text"], "speakers": inputs(seed=5)["speakers"]}
    (video, audio), (video_other, audio_other) = run(case), run(other)
    assert torch.equal(video[0], video_other[0]) and torch.equal(audio[0], audio_other[0])
    assert gap(video[1], video_other[1]) > 1e-2 and gap(audio[1], audio_other[1]) > 1e-2


def test_the_padding_is_seen_only_when_asked_and_never_the_hidden_states_beyond_the_text() -> None:
    case = inputs()
    beyond = case | {"text": case["text"].clone()}
    beyond["text"][1, 4:] = 7.0
    assert torch.equal(run(case)[0], run(beyond)[0])
    unseen = case | {"attend_text_padding": False}
    assert gap(run(case)[0], run(unseen)[0]) > 1e-2
    assert torch.equal(run(unseen)[0], run(unseen | {"context_length": CONTEXT + 4})[0])
    assert gap(run(case)[0], run(case | {"context_length": CONTEXT + 4})[0]) > 1e-2


def test_speakers() -> None:
    case = inputs()
    case["speakers"][0, 1] = case["speakers"][0, 0]
    swapped = case | {"speakers": torch.stack([case["speakers"][0].flip(0), case["speakers"][1]])}
    assert torch.equal(run(case)[1], run(swapped)[1])
    other = inputs()
    other["speakers"][0, 1] = -other["speakers"][0, 1]
    moved = inputs() | {"speaker_positions": torch.tensor([[1, 4], [2, -1]])}
    null = inputs()
    null["speakers"][0, 1] = 0.0
    for changed in (other, moved, null):
        assert gap(run(inputs())[1][0], run(changed)[1][0]) > 1e-2
    unused = inputs()
    unused["speakers"][1, 1] = 0.0  # at position -1
    assert torch.equal(run(unused)[1], run(inputs())[1])


def test_the_context_is_a_set() -> None:
    """Cross-attention has no positions and a timbre token replaces its vector: two voices that change places
    change nothing."""
    flipped = inputs() | {
        "speakers": inputs()["speakers"].flip(1),
        "speaker_positions": torch.tensor([[1, 3], [-1, 2]]),
    }
    assert gap(run(inputs())[0], run(flipped)[0]) < 1e-5 and gap(run(inputs())[1], run(flipped)[1]) < 1e-5


def test_a_permuted_batch_permutes_the_output() -> None:
    case, order = inputs(batch=3), torch.tensor([2, 0, 1])
    moved = {name: value[order] if isinstance(value, Tensor) else value for name, value in case.items()}
    for one, other in zip(run(case), run(moved), strict=True):
        assert gap(one[order], other) < 1e-5


def test_the_level_is_per_token() -> None:
    case = inputs()
    other = case | {"video_levels": case["video_levels"].clone()}
    other["video_levels"][0, 0] = 0.6
    difference = (run(case)[0] - run(other)[0]).abs()
    assert (
        float(difference[0, :, 0].mean()) > 2 * float(difference[0, :, 1:].mean())
        and float(difference[1].max()) == 0.0
    )


def test_rotary_is_relative() -> None:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(3))
    q, k, v = draw(7, 32), draw(7, 32), draw(7, 32)
    here = torch.zeros(7, 3, dtype=torch.float64)
    here[:, 0] = torch.arange(7) * 0.24
    results = []
    for offset in (0.0, 100.0):
        angles = rotary_angles(here + torch.tensor([offset, 0.0, 0.0]), 16, 1e4)
        results.append(attend(q, k, v, 2, angles, angles))
    assert gap(*results) < 1e-5 and gap(results[0], attend(q, k, v, 2)) > 1e-2
    assert bool((rotary_angles(here, 16, 1e4)[:, 4:] == 0).all())
    assert (
        rotary_angles(here, 128, 1e4).shape == (7, 64)
        and int((rotary_angles(here, 128, 1e4)[1] != 0).sum()) == 22
    )


def test_only_the_distance_between_the_clocks_counts() -> None:
    case = inputs()
    ckpt = random_checkpoint(SMALL, 1)

    def alone(**changes: Any) -> Tensor:
        without_video: dict[str, Any] = {**case, "video": None, **changes}
        velocity = forward(ckpt, SMALL, **without_video)[1]
        assert velocity is not None
        return velocity

    assert gap(alone(), alone(audio_start=50)) < 1e-4
    assert gap(alone(), alone(video_rate_hz=12.0)) > 1e-3, (
        "the video rate sets the clock with audio alone too"
    )
    assert gap(alone(), alone(video_rate_hz=12.0, audio_rate_hz=50.0)) == 0.0
    assert gap(run(case)[1], run(case | {"audio_start": 50})[1]) > 1e-3, (
        "beside video an absolute shift is seen"
    )


def count(sizes: Sizes, part: str = "") -> int:
    shapes = layout_shapes(sizes)
    return sum(
        torch.empty(shape, device="meta").numel()
        for name, shape in shapes.items()
        if name.startswith(f"backbone.{part}")
    )


def test_parameter_counts() -> None:
    assert count(FULL) == 6_296_995_520
    assert round(count(replace(FULL, split_norm_ffn=True)) / 1e9, 3) == 7.178
    assert count(FULL, "double_blocks.0.") == 239_209_472 and count(FULL, "single_blocks.0.") == 163_656_704
    assert (
        count(FULL, "patch_embedding_audio.") == 531_237_888
        and count(FULL, "speaker_embedding.") == 10_042_752
    )
