"""Align-then-Fuse: double-stream alignment blocks, then single-stream fusion blocks (paper section 3).

Both kinds: x += gate1 * self_attn(mod(norm1 x)); x += cross_attn(norm3 x, context); x += gate2 *
ffn(mod(norm2 x)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import AttentionPlan, Projections
from pretrain.model.modulation import gated_add, modulated_norm
from pretrain.types import Conditioning

# shift1 scale1 gate1 shift2 scale2 gate2, each [B, G, 1, width]: [6, ...], or unbound once per block (selects
# are slow in backward)
ModulationRows = Sequence[Tensor] | Tensor


class Context(NamedTuple):
    """What cross-attention sees."""

    tokens: Tensor  # [B, S, width]
    mask: Tensor | None  # [B, 1, 1, S] bool; None = all
    kept: Tensor | None  # [B, 1, 1]; 0 = text dropped, contributes nothing; None = all kept


def cross_context(tokens: Tensor, conditioning: Conditioning, attend_padding: bool) -> Context:
    """The context tokens [B, S, width] with what of them each sample may attend to."""
    kept, mask = conditioning.text_kept, None
    if not attend_padding and conditioning.text_padded:
        # a dropped text may be empty: softmax stays finite
        mask = (conditioning.text_mask | ~kept[:, None])[:, None, None]
    return Context(tokens, mask, None if conditioning.all_kept else kept[:, None, None].to(tokens.dtype))


class FeedForward(nn.Sequential):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(
            nn.Linear(args.width, args.ffn_width), nn.GELU(args.gelu), nn.Linear(args.ffn_width, args.width)
        )


def add_cross(x: Tensor, attention: Projections, norm: nn.LayerNorm, context: Context) -> Tensor:
    """x + cross_attention(norm(x)), nothing where the sample's text is dropped."""
    update = attention.cross(norm(x.to(norm.weight.dtype)), context.tokens, context.mask)
    return x + (update if context.kept is None else update * context.kept).to(x.dtype)


def add_ffn(x: Tensor, ffn: FeedForward, modulation: ModulationRows, eps: float) -> Tensor:
    """x + gate2 * ffn(modulated norm2(x))."""
    hidden = modulated_norm(x, modulation[3], modulation[4], eps)
    return gated_add(x, ffn(hidden.to(ffn[0].bias.dtype)), modulation[5])


class AlignmentBlock(nn.Module):
    """Double-stream block: own projections and modulation, one joint attention; FFN shared unless split."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.eps = args.eps
        self.self_attn, self.self_attn_audio = Projections(args), Projections(args)
        self.cross_attn, self.cross_attn_audio = Projections(args), Projections(args)
        self.norm3, self.ffn = nn.LayerNorm(args.width, eps=args.eps), FeedForward(args)
        self.split = args.split_ffn_and_norms
        if self.split:
            self.norm3_audio, self.ffn_audio = nn.LayerNorm(args.width, eps=args.eps), FeedForward(args)

    def forward(
        self,
        streams: tuple[Tensor | None, Tensor | None],
        modulations: tuple[Tensor | None, Tensor | None],
        freqs_cis: tuple[Tensor | None, Tensor | None],
        plan: AttentionPlan,
        context: Context,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(video, audio) tokens [B, N, width], None = absent; freqs_cis are complex [N, 1, head_dim // 2]."""
        parts = (
            (self.self_attn, self.cross_attn, self.norm3, self.ffn),
            (
                self.self_attn_audio,
                self.cross_attn_audio,
                *((self.norm3_audio, self.ffn_audio) if self.split else (self.norm3, self.ffn)),
            ),
        )
        rows = [None if modulation is None else modulation.unbind() for modulation in modulations]
        qkv = [
            self._project(x, part[0], row, freqs)
            for x, part, row, freqs in zip(streams, parts, rows, freqs_cis, strict=True)
            if x is not None and row is not None and freqs is not None
        ]
        q, k, v = (
            (torch.cat(pieces, dim=1) if len(qkv) > 1 else pieces[0]).transpose(1, 2)
            for pieces in zip(*qkv, strict=True)
        )
        attended = iter(
            split_streams(plan.attend(q, k, v).transpose(1, 2).flatten(2), (plan.num_video, plan.num_audio))
        )
        out: list[Tensor | None] = []
        for x, row, (self_attn, cross_attn, norm3, ffn) in zip(streams, rows, parts, strict=True):
            if x is None or row is None:
                out.append(None)
                continue
            x = gated_add(x, self_attn.o(next(attended)), row[2])
            out.append(add_ffn(add_cross(x, cross_attn, norm3, context), ffn, row, self.eps))
        return out[0], out[1]

    def _project(
        self, x: Tensor, attention: Projections, modulation: ModulationRows, freqs_cis: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden = modulated_norm(x, modulation[0], modulation[1], self.eps)
        return attention.rotated_qkv(hidden.to(attention.norm_q.weight.dtype), freqs_cis)


def split_streams(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x [B, N, ...] split into the present streams; x itself if one (a split copies the gradient)."""
    present = [size for size in sizes if size]
    return (x,) if len(present) == 1 else x.split(present, dim=1)


def normed_streams(
    x: Tensor, modulations: Sequence[ModulationRows], sizes: Sequence[int], first: int, eps: float
) -> Tensor:
    """Modulated norm of streams x [B, N, width] of `sizes` tokens (modulation rows first, first + 1)."""
    split = zip(split_streams(x, sizes), modulations, strict=True)
    pieces = [modulated_norm(piece, m[first], m[first + 1], eps) for piece, m in split]
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]


def gated_streams(
    x: Tensor, update: Tensor, modulations: Sequence[ModulationRows], sizes: Sequence[int], row: int
) -> Tensor:
    """x + gate * update of concatenated streams, each gated by row `row` of its modulation."""
    split = zip(split_streams(x, sizes), split_streams(update, sizes), modulations, strict=True)
    pieces = [gated_add(piece, change, m[row]) for piece, change, m in split]
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]


class FusionBlock(nn.Module):
    """Single-stream block: one set of weights for [video; audio]; each modality has its own modulation."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.eps = args.eps
        self.self_attn, self.cross_attn = Projections(args), Projections(args)
        self.norm3, self.ffn = nn.LayerNorm(args.width, eps=args.eps), FeedForward(args)

    def forward(
        self,
        x: Tensor,
        modulations: tuple[Tensor, ...],
        freqs_cis: Tensor,
        plan: AttentionPlan,
        context: Context,
    ) -> Tensor:
        """x [B, N, width] with complex freqs_cis [N, 1, head_dim // 2]; modulations of present streams."""
        sizes = (plan.num_video, plan.num_audio)
        rows = [modulation.unbind() for modulation in modulations]
        hidden = normed_streams(x, rows, sizes, 0, self.eps).to(self.self_attn.norm_q.weight.dtype)
        q, k, v = (part.transpose(1, 2) for part in self.self_attn.rotated_qkv(hidden, freqs_cis))
        update = self.self_attn.o(plan.attend(q, k, v).transpose(1, 2).flatten(2))
        x = gated_streams(x, update, rows, sizes, 2)
        x = add_cross(x, self.cross_attn, self.norm3, context)
        hidden = normed_streams(x, rows, sizes, 3, self.eps).to(self.ffn[0].bias.dtype)
        return gated_streams(x, self.ffn(hidden), rows, sizes, 5)


class Head(nn.Module):
    """Modulated LayerNorm, then a linear map to latents; weights start at zero."""

    def __init__(self, args: ModelArgs, out_features: int) -> None:
        super().__init__()
        self.eps = args.eps
        self.linear = nn.Linear(args.width, out_features)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """[B, N, width], modulation [2, B, G, 1, width] -> [B, N, out_features], fp32."""
        hidden = modulated_norm(x, modulation[0], modulation[1], self.eps)
        return self.linear(hidden.to(self.linear.weight.dtype)).float()
