"""FLOPs counted from the sizes are those torch's own counter sees: small models in every way of running, the
full one on meta."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import audio_stream, conditioning, debug_model, video_stream
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.args import ModelArgs
from pretrain.model.flavors import build_model, flavor
from pretrain.model.flops import ClipShape, forward_flops, params_met_per_video_token, training_flops
from pretrain.model.shell import AVTransformer
from pretrain.types import Conditioning, Stream, Velocity

FULL_CLIP = ClipShape(video=32_560, audio=151, context=512, references=1)
_DEBUG = flavor("debug")


def counted(
    model: AVTransformer, video: Stream | None, audio: Stream | None, given: Conditioning
) -> tuple[int, int]:
    """Forward and backward FLOPs of one run, by torch."""
    with FlopCounterMode(display=False) as forward:
        answer = model(video, audio, given)
    with FlopCounterMode(display=False) as backward:
        _loss(answer).backward()
    return forward.get_total_flops(), backward.get_total_flops()


def _loss(answer: Velocity) -> torch.Tensor:
    return torch.stack([part.sum() for part in answer if part is not None]).sum()


def built(args: ModelArgs) -> AVTransformer:
    model = build_model(args)
    model.init_weights()
    return model


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("case", ["joint", "audio", "video", "apart", "first_frame"])
def test_small_models_in_every_way_of_running(case: str, split: bool) -> None:
    args = replace(_DEBUG, split_ffn_and_norms=split)
    video = None if case == "audio" else video_stream(frames=3)
    audio = None if case == "video" else audio_stream(tokens=10)
    given = conditioning(tokens=9, references=2)
    if video and case == "first_frame":
        sigma = torch.full((2, 3), 0.5)
        sigma[:, 0] = 0
        video = replace(video, sigma=sigma)
    if case == "apart":
        given = replace(given, modalities_joined=torch.zeros(2, dtype=torch.bool))
    levels = video.sigma.shape[1] if video else 1
    shape = ClipShape(
        video=12 * bool(video),
        audio=10 * bool(audio),
        context=9,
        references=2,
        video_levels=levels,
        joined=case != "apart",
    )
    forward, backward = counted(built(args), video, audio, given)
    assert forward == 2 * forward_flops(args, shape)
    assert forward + backward == 2 * training_flops(args, shape)


@pytest.mark.parametrize("name", ["debug_dual_tower", "debug_unified"])
def test_other_paradigms_apart(name: str) -> None:
    given = replace(conditioning(tokens=9, references=2), modalities_joined=torch.zeros(2, dtype=torch.bool))
    shape = ClipShape(video=12, audio=10, context=9, references=2, joined=False)
    forward, _ = counted(debug_model(name=name), video_stream(frames=3), audio_stream(tokens=10), given)
    assert forward == 2 * forward_flops(flavor(name), shape)


def full_inputs(levels: int = 1) -> tuple[Stream, Stream, Conditioning]:
    """145 frames of 704x1280 at 24 fps beside 151 audio tokens; what decides about control flow is real, the
    rest is meta."""
    empty = lambda *shape: torch.empty(*shape, device="meta")  # noqa: E731
    everywhere = torch.ones(1, dtype=torch.bool)
    video = Stream(empty(1, 48, 37, 44, 80), torch.tensor([37]), empty(1, levels), 6.0, 6.0)
    audio = Stream(empty(1, 128, 151), torch.tensor([151]), empty(1, 1), 25.0, 6.0)
    text_mask, positions = (
        torch.ones(1, 512, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.int64, device="meta"),
    )
    return (
        video,
        audio,
        Conditioning(empty(1, 512, 4096), text_mask, empty(1, 1, 192), positions, everywhere, everywhere),
    )


@pytest.mark.parametrize("name", ["nava_6b", "nava_7b_split"])
def test_full_size_clip_exactly(name: str) -> None:
    with torch.device("meta"):
        model = build_model(flavor(name))
    forward, backward = counted(model, *full_inputs(levels=37))
    shape = replace(FULL_CLIP, video_levels=37)
    assert forward == forward_flops(flavor(name), shape)
    assert forward + backward == training_flops(flavor(name), shape)


def test_full_size_by_hand() -> None:
    """2.06 PFLOP: the context's 512 tokens meet cross-attention's k and v. Charging every token with them
    would give 2.17."""
    args = flavor("nava_6b")
    flops = training_flops(args, FULL_CLIP)
    assert flops == pytest.approx(2.0569e15, rel=1e-4)
    keys_and_values = 2 * args.width**2
    per_block = [32_711 - 2 * 512] * 10 + [32_711 - 512] * 20  # alignment blocks have them per modality
    charged_to_all = flops + sum(3 * 2 * tokens * keys_and_values for tokens in per_block)
    assert charged_to_all == pytest.approx(2.165e15, rel=1e-3)
    assert (
        params_met_per_video_token(args)
        == 30 * (6 * args.width**2 + 2 * args.width * args.ffn_width) + 2 * 192 * args.width
    )
    assert params_met_per_video_token(args) + 30 * keys_and_values == pytest.approx(4.91e9, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(video=st.integers(1, 40_000), audio=st.integers(1, 500), context=st.integers(1, 512))
def test_more_tokens_cost_more_and_apart_costs_less(video: int, audio: int, context: int) -> None:
    args, shape = flavor("nava_6b"), ClipShape(video=video, audio=audio, context=context)
    flops = training_flops(args, shape)
    assert flops < training_flops(args, replace(shape, video=video + 1)) and flops < training_flops(
        args, replace(shape, audio=audio + 1)
    )
    assert (
        flops - training_flops(args, replace(shape, joined=False)) == 3 * 30 * 8 * video * audio * args.width
    )
