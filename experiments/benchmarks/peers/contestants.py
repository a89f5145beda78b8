"""One training step and one generation step of each contestant, as functions without arguments, at equal
sizes on equal inputs.

diffusers' models keep in fp32 what their loader keeps there; ours keeps its time path, as under FSDP2.
Attention and kernels are what each library takes by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.benchmarks.peers.shapes import Shape
from pretrain.model.flavors import build_model
from pretrain.sampling import lower_precision
from pretrain.types import AUDIO_TOKENS_PER_S, Conditioning, Stream

LEVEL, VIDEO_RATE_HZ = 0.6, 6.0
Forward = Callable[[], tuple[Tensor, ...]]


def ours(
    shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> tuple[nn.Module, Forward]:
    """Our transformer; video alone where the shape has no audio."""
    with torch.device(device):
        model = build_model(shape.args())
        model.init_weights()
        for head in (
            model.head,
            model.head_audio,
        ):  # they start at zero, and gradients of zero are no work to measure
            nn.init.normal_(head.linear.weight, std=0.02)
        if dtype is not torch.float32:
            lower_precision(model, dtype)
        video, everyone = (
            torch.randn(shape.batch, 48, shape.frames, shape.rows, shape.columns),
            torch.ones(shape.batch, dtype=torch.bool),
        )
        streams = [_stream(video, VIDEO_RATE_HZ), None]
        if shape.audio:
            streams[1] = _stream(torch.randn(shape.batch, 128, shape.audio), AUDIO_TOKENS_PER_S)
        conditioning = Conditioning(
            torch.randn(shape.batch, shape.context, shape.text_width),
            everyone[:, None].expand(-1, shape.context),
            torch.randn(shape.batch, 1, 192),
            torch.zeros(shape.batch, 1, dtype=torch.int64),
            everyone,
            everyone,
        )
    if compiled:
        for group in model.block_groups():
            for block in group:
                block.compile()
    return model, lambda: tuple(part for part in model(*streams, conditioning) if part is not None)


def wan(
    shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> tuple[nn.Module, Forward]:
    """diffusers' WanTransformer3DModel, video alone."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    with torch.device(device):
        model = WanTransformer3DModel(
            num_attention_heads=shape.heads,
            attention_head_dim=shape.width // shape.heads,
            in_channels=48,
            out_channels=48,
            text_dim=shape.text_width,
            ffn_dim=shape.ffn,
            num_layers=shape.depth,
        )
        _lower_as_loaded(model, dtype)
        latents = torch.randn(shape.batch, 48, shape.frames, shape.rows, shape.columns, dtype=dtype)
        text = torch.randn(shape.batch, shape.context, shape.text_width, dtype=dtype)
        steps = torch.full((shape.batch,), round(1000 * LEVEL))
    if compiled:
        model.compile_repeated_blocks()
    return model, lambda: model(latents, steps, text, return_dict=False)


def ltx2(
    shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> tuple[nn.Module, Forward]:
    """diffusers' LTX2VideoTransformer3DModel: a dual tower, each as wide as ours."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    size = shape.width // shape.heads
    with torch.device(device):
        model = LTX2VideoTransformer3DModel(
            in_channels=192,
            out_channels=192,
            num_layers=shape.depth,
            caption_channels=shape.text_width,
            num_attention_heads=shape.heads,
            attention_head_dim=size,
            cross_attention_dim=shape.width,
            audio_num_attention_heads=shape.heads,
            audio_attention_head_dim=size,
            audio_cross_attention_dim=shape.width,
        )
        _lower_as_loaded(model, dtype)
        video = torch.randn(shape.batch, shape.video_tokens, 192, dtype=dtype)
        audio = torch.randn(shape.batch, shape.audio, 128, dtype=dtype)
        text = torch.randn(shape.batch, shape.context, shape.text_width, dtype=dtype)
        steps = torch.full((shape.batch, 1), 1000 * LEVEL)
    if compiled:
        model.compile_repeated_blocks()
    sizes = {
        "num_frames": shape.frames,
        "height": shape.rows // 2,
        "width": shape.columns // 2,
        "audio_num_frames": shape.audio,
    }
    return model, lambda: model(video, audio, text, text, steps, steps, fps=24.0, return_dict=False, **sizes)


def training_step(model: nn.Module, forward: Forward) -> Callable[[], None]:
    """Forward, a squared loss, backward; gradients are fresh each time and no optimizer runs."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack([answer.float().square().mean() for answer in forward()]).sum().backward()

    return step


def generation_step(forward: Forward) -> Callable[[], None]:
    """One forward without gradients."""

    def step() -> None:
        with torch.no_grad():
            forward()

    return step


def _stream(latents: Tensor, rate_hz: float) -> Stream:
    batch, length = latents.shape[0], latents.shape[2]
    return Stream(
        latents, torch.full((batch,), length), torch.full((batch, 1), LEVEL), rate_hz, VIDEO_RATE_HZ
    )


def _lower_as_loaded(model: nn.Module, dtype: torch.dtype) -> None:
    """What `from_pretrained(torch_dtype=...)` does: all but the modules that the class keeps in fp32."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or []
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
