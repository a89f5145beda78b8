"""A model on a context group of gloo ranks: what it answers and the gradients its ranks add up to, against
one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from model_cases import audio_stream, conditioning, present, video_stream
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.context_parallel import ContextGroup
from pretrain.model.flavors import build_model
from pretrain.model.shell import AVTransformer
from pretrain.types import Conditioning, Stream

Case = tuple[Stream | None, Stream | None, Conditioning]
ARGS = ModelArgs(
    width=32,
    num_heads=4,
    ffn_width=64,
    num_alignment_blocks=2,
    num_fusion_blocks=1,
    text_width=256,
    time_frequencies=32,
    audio_embed_hidden=32,
    audio_embed_kernel=3,
    timbre_keeps_text=True,
)


def cases() -> dict[str, Case]:
    """Batches of two; 11 audio tokens split unevenly on 2 and on 4 ranks, 4 tokens of a frame evenly."""
    video, audio, text = video_stream(), audio_stream(tokens=11), conditioning()
    levels = video.sigma.repeat(1, 3)
    levels[0, 0] = 0.0
    given = replace(video, sigma=levels)
    parted = lambda *joined: replace(text, modalities_joined=torch.tensor(joined))  # noqa: E731
    shorter = (replace(video, lengths=torch.tensor([3, 2])), replace(audio, lengths=torch.tensor([11, 3])))
    return {
        "joint": (video, audio, text),
        "video only": (video, None, text),
        "audio only": (None, audio, text),
        "apart": (video, audio, parted(False, False)),
        "one of two apart": (video, audio, parted(True, False)),
        "clean first frame": (given, audio, text),
        "level per audio token": (
            video,
            replace(audio, sigma=torch.linspace(0.1, 0.9, 22).view(2, 11)),
            text,
        ),
        "padded": (*shorter, text),
        "padded, one apart, first frame": (
            replace(shorter[0], sigma=levels),
            shorter[1],
            parted(False, True),
        ),
        "text dropped and padded": (
            video,
            audio,
            replace(
                text,
                text_kept=torch.tensor([False, True]),
                text_mask=torch.arange(9).expand(2, -1) < torch.tensor([[0], [7]]),
            ),
        ),
    }


def filled_model(args: ModelArgs = ARGS) -> AVTransformer:
    torch.manual_seed(0)
    model = build_model(args)
    model.init_weights()
    for head in (model.head, model.head_audio):
        nn.init.normal_(head.linear.weight, std=0.2)
    return model


def answers(model: nn.Module, case: Case) -> dict[str, Tensor]:
    """Velocities, and gradients of a loss with a different weight for every element."""
    model.zero_grad(set_to_none=True)
    velocity = model(*case)
    found = {name: value for name, value in velocity._asdict().items() if value is not None}
    loss = torch.stack(
        [(value * torch.linspace(-1, 1, value.numel()).view(value.shape)).sum() for value in found.values()]
    ).sum()
    loss.backward()
    gradients = {name: present(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: value.detach() for name, value in found.items()}, **gradients}


def rank(index: int, folder: Path) -> int:
    """Every case on this rank of a context group of all ranks; rank 0 writes what came out, gradients summed
    over the ranks."""
    dist.init_process_group("gloo")
    model = filled_model()
    model.join_context_group(ContextGroup(index, dist.get_world_size(), present(dist.group.WORLD).group_name))
    results = {}
    for name, case in cases().items():
        found = answers(model, case)
        for key, value in found.items():
            if key in ("video", "audio"):
                every = [torch.empty_like(value) for _ in range(dist.get_world_size())]
                dist.all_gather(every, value.contiguous())
                assert all(torch.equal(other, value) for other in every), (name, key)
            else:
                dist.all_reduce(value)
        results[name] = found
    if index == 0:
        torch.save(results, folder / "results.pt")
    return 0
