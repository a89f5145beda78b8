"""Context parallelism (Ulysses): a rank holds part of the tokens; in attention, part of the heads.

Source: DeepSpeed Ulysses (Jacobs et al. 2023). Everything but self-attention is per token: two exchanges per
block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from pretrain.model.args import ModelArgs

Counts = tuple[tuple[int, int], ...]  # (video, audio) tokens of each rank


@dataclass(frozen=True)
class ContextGroup:
    """The ranks that hold one micro-batch together. All of them must be given the same batch."""

    rank: int  # within the group
    size: int
    name: str  # of the process group, as torch knows it


def split_video(x: Tensor, frames: int, size: int, dim: int) -> list[Tensor]:
    """`size` parts of the tokens along dim, each with an equal stretch of every frame."""
    return [part.flatten(dim, dim + 1) for part in x.unflatten(dim, (frames, size, -1)).unbind(dim + 1)]


def join_video(parts: Sequence[Tensor], frames: int, dim: int) -> Tensor:
    """What `split_video` took apart."""
    return torch.stack([part.unflatten(dim, (frames, -1)) for part in parts], dim=dim + 1).flatten(
        dim, dim + 2
    )


def check_degree(args: ModelArgs, size: int) -> None:
    """Raises ValueError where a model's tokens or heads do not split over `size` ranks."""
    if size > 1 and args.paradigm != "nava":
        raise ValueError(
            f"parallel.context {size}: paradigm {args.paradigm} does not split its tokens; set it to 1"
        )
    if args.num_heads % size:
        raise ValueError(
            f"parallel.context {size} does not divide the model's {args.num_heads} heads; choose a divisor"
        )


def check_split(
    frames: int, rows: int, columns: int, audio: int, size: int, where: str = "context parallelism"
) -> None:
    """Raises ValueError where a batch's tokens do not split over `size` ranks; 0 = modality absent."""
    if frames and rows * columns % size:
        raise ValueError(
            f"{where}: a frame of {rows} x {columns} tokens does not split over {size} ranks; choose "
            "another size or parallel.context"
        )
    if 0 < audio < size:
        raise ValueError(
            f"{where}: {audio} audio tokens are too few for {size} ranks; choose a smaller parallel.context"
        )


@dataclass(frozen=True)
class Share:
    """Which tokens of a batch each rank of a group holds. Raises ValueError where they do not split."""

    group: ContextGroup
    frames: int  # of video; 0 = none
    rows: int  # of tokens in a frame
    columns: int
    audio: int  # tokens; 0 = none

    def __post_init__(self) -> None:
        check_split(self.frames, self.rows, self.columns, self.audio, self.group.size)

    @cached_property
    def counts(self) -> Counts:
        """(video, audio) tokens of each rank."""
        size = self.group.size
        video = self.frames * self.rows * self.columns // size
        return tuple((video, self.audio // size + (rank < self.audio % size)) for rank in range(size))

    @property
    def whole(self) -> tuple[int, int]:
        """(video, audio) tokens of all ranks together."""
        return self.frames * self.rows * self.columns, self.audio

    def own_video(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of whole video tokens along dim."""
        return split_video(x, self.frames, self.group.size, dim)[self.group.rank].contiguous()

    def own_audio(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of whole audio tokens along dim."""
        return x.tensor_split(self.group.size, dim)[self.group.rank].contiguous()

    def whole_video(self, x: Tensor) -> Tensor:
        """[B, own tokens, features] -> [B, all tokens, features], alike on every rank."""
        return join_video(gather_tokens(x, [video for video, _ in self.counts], self.group), self.frames, 1)

    def whole_audio(self, x: Tensor) -> Tensor:
        """[B, own tokens, features] -> [B, all tokens, features], alike on every rank."""
        return torch.cat(gather_tokens(x, [audio for _, audio in self.counts], self.group), dim=1)

    def order(self, device: torch.device | None = None) -> Tensor:
        """[N] indices in [video; audio] in attention order: rank by rank, video before audio."""
        video, audio = torch.arange(sum(self.whole), device=device).split(self.whole)
        videos = (
            split_video(video, self.frames, self.group.size, 0) if self.frames else [video] * self.group.size
        )
        pairs = zip(videos, audio.tensor_split(self.group.size), strict=True)
        return torch.cat([part for pair in pairs for part in pair])


class _Exchange(Function):
    """All-to-all along dimension 0 in pieces of given sizes; the gradient goes the way back."""

    @staticmethod
    def forward(ctx, x: Tensor, received: list[int], sent: list[int], name: str) -> Tensor:  # type: ignore[override]
        ctx.way_back = (sent, received, name)
        return _all_to_all(x, received, sent, name)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _all_to_all(gradient.contiguous(), *ctx.way_back), None, None, None


def _all_to_all(x: Tensor, received: list[int], sent: list[int], name: str) -> Tensor:
    collectives = torch.ops._c10d_functional
    return collectives.wait_tensor(collectives.all_to_all_single(x, received, sent, name))


def tokens_to_heads(
    q: Tensor, k: Tensor, v: Tensor, tokens: Sequence[int], group: ContextGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, heads, own tokens, d] each -> [B, heads / ranks, all tokens, d], by rank; one all-to-all."""
    batch, heads, own, dims = q.shape
    # tokens first: the received parts are then in order, without a copy
    parts = [
        x.reshape(batch, group.size, heads // group.size, own, dims).permute(1, 3, 0, 2, 4) for x in (q, k, v)
    ]
    sent = torch.stack(parts, dim=2).flatten(0, 1)  # [ranks * own, 3, B, heads / ranks, d]
    out = _Exchange.apply(sent, list(tokens), [own] * group.size, group.name)
    q, k, v = (x.permute(1, 2, 0, 3) for x in out.unbind(1))
    return q, k, v


def heads_to_tokens(x: Tensor, tokens: Sequence[int], group: ContextGroup) -> Tensor:
    """[B, heads / ranks, all tokens, d] -> [B, heads, own tokens, d]."""
    own = tokens[group.rank]
    sent = x.permute(2, 0, 1, 3).contiguous()  # [all tokens, B, heads / ranks, d]
    out = _Exchange.apply(sent, [own] * group.size, list(tokens), group.name)
    return out.unflatten(0, (group.size, own)).permute(2, 1, 0, 3, 4).flatten(2, 3).transpose(1, 2)


class _Gather(Function):
    """Gathers [...] of every rank as [ranks, ...]. Gradient: this rank's slice of the same loss."""

    @staticmethod
    def forward(ctx, x: Tensor, group: ContextGroup) -> Tensor:  # type: ignore[override]
        ctx.rank = group.rank
        collectives = torch.ops._c10d_functional
        whole = collectives.wait_tensor(
            collectives.all_gather_into_tensor(x.contiguous(), group.size, group.name)
        )
        return whole.unflatten(0, (group.size, -1))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient[ctx.rank], None


def gather_tokens(x: Tensor, counts: Sequence[int], group: ContextGroup) -> list[Tensor]:
    """Every rank's [B, its tokens, features], alike on every rank."""
    padded = F.pad(x, (0, 0, 0, max(counts) - x.shape[1]))
    return [part[:, :count] for part, count in zip(_Gather.apply(padded, group), counts, strict=True)]
