"""Fully unified: context, video and audio are peer tokens of one self-attention, with one set of weights for
all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import Projections, scaled_attention
from pretrain.model.blocks import FeedForward, gated_streams, normed_streams
from pretrain.model.modulation import StreamModulation
from pretrain.model.shell import AVTransformer, Inputs, Pair
from pretrain.types import Stream


class PeerBlock(nn.Module):
    """Self-attention and FFN over [context; video; audio]; each stream keeps its own flow levels."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.eps = args.eps
        self.self_attn, self.ffn = Projections(args), FeedForward(args)

    def forward(
        self,
        x: Tensor,
        modulations: tuple[Tensor, ...],
        sizes: Sequence[int],
        freqs_cis: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """x [B, N, width] of streams of `sizes` tokens with complex freqs_cis [N, 1, head_dim // 2]; mask
        [B, 1, N, N]."""
        dtype = self.self_attn.q.weight.dtype
        hidden = normed_streams(x, modulations, sizes, 0, self.eps).to(dtype)
        q, k, v = (part.transpose(1, 2) for part in self.self_attn.rotated_qkv(hidden, freqs_cis))
        update = self.self_attn.o(scaled_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        x = gated_streams(x, update, modulations, sizes, 2)
        return gated_streams(
            x, self.ffn(normed_streams(x, modulations, sizes, 3, self.eps).to(dtype)), modulations, sizes, 5
        )


class UnifiedTransformer(AVTransformer):
    """`num_fusion_blocks` blocks over all tokens. Context tokens are clean, so they carry level 0, and stand
    at time 0."""

    def add_blocks(self, args: ModelArgs) -> None:
        self.peer_blocks = nn.ModuleList(PeerBlock(args) for _ in range(args.num_fusion_blocks))

    def block_groups(self) -> tuple[nn.ModuleList, ...]:
        return (self.peer_blocks,)

    def modulations(self, video: Stream | None, audio: Stream | None) -> tuple[StreamModulation | None, ...]:
        levels = [stream.sigma for stream in (video, audio) if stream]
        return self.time(
            video.sigma if video else None, audio.sigma if audio else None, torch.zeros_like(levels[0][:, :1])
        )

    def mix(self, given: Inputs) -> Pair:
        num_context, (num_video, num_audio) = given.context.shape[1], given.counts
        kinds = torch.tensor([0, 1, 2], device=given.context.device).repeat_interleave(
            torch.tensor([num_context, num_video, num_audio], device=given.context.device)
        )
        mask = peer_mask(given, kinds, self.args.attend_text_padding)
        joint = torch.cat([given.context, *(x for x in given.tokens if x is not None)], dim=1)
        still = torch.ones(
            num_context, 1, self.args.head_dim // 2, dtype=torch.complex64, device=joint.device
        )
        freqs_cis = torch.cat([still, *(part for part in given.freqs_cis if part is not None)])
        video, audio, context = given.modulations
        sizes = [num_context, *(count for count in given.counts if count)]
        for index, block in enumerate(self.peer_blocks):
            joint = block(
                joint, tuple(m.fusion[index] for m in (context, video, audio) if m), sizes, freqs_cis, mask
            )
        _, video_tokens, audio_tokens = joint.split((num_context, num_video, num_audio), dim=1)
        return video_tokens, audio_tokens


def peer_mask(given: Inputs, kinds: Tensor, attend_padding: bool) -> Tensor | None:
    """[B, 1, N, N] bool over tokens of kinds [N] (0 context, 1 video, 2 audio), True = may attend; None =
    everyone to everyone.

    Where a sample's modalities are apart, its context keeps to itself too, or it would carry one to the
    other. Nobody but itself sees a dropped text or padding.
    """
    conditioning = given.conditioning
    joined, kept = conditioning.modalities_joined, conditioning.text_kept
    text = conditioning.text_mask | attend_padding
    if (
        bool(joined.all())
        and bool(kept.all())
        and bool(text.all())
        and all(valid is None for valid in given.valid)
    ):
        return None
    streams = [
        x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        for x, valid in zip(given.tokens, given.valid, strict=True)
        if x is not None
    ]
    valid = torch.cat([text & kept[:, None], *streams], dim=1)
    reads_context = kinds[None, :] == 0
    allowed = joined[:, None, None] | (kinds[:, None] == kinds[None, :]) | reads_context
    own = torch.eye(
        len(kinds), dtype=torch.bool, device=kinds.device
    )  # a token that nobody sees sees itself: softmax stays finite
    return ((allowed & valid[:, None, :]) | own)[:, None]
