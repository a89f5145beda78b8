"""Fully unified: context, video and audio tokens in one self-attention with one set of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import Projections, scaled_attention
from pretrain.model.blocks import FeedForward, gated_streams, normed_streams
from pretrain.model.modulation import StreamModulation
from pretrain.model.shell import AVTransformer, Inputs, StreamPair
from pretrain.types import Stream


class PeerBlock(nn.Module):
    """Self-attention and FFN over [context; video; audio]; each stream has its own sigmas."""

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
        """x [B, N, width] of `sizes` tokens; freqs_cis complex [N, 1, head_dim // 2]; mask [B, 1, N, N]."""
        dtype = self.self_attn.norm_q.weight.dtype
        hidden = normed_streams(x, modulations, sizes, 0, self.eps).to(dtype)
        q, k, v = (part.transpose(1, 2) for part in self.self_attn.rotated_qkv(hidden, freqs_cis))
        update = self.self_attn.o(scaled_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        x = gated_streams(x, update, modulations, sizes, 2)
        return gated_streams(
            x, self.ffn(normed_streams(x, modulations, sizes, 3, self.eps).to(dtype)), modulations, sizes, 5
        )


class UnifiedTransformer(AVTransformer):
    """`num_fusion_blocks` blocks over all tokens; context tokens have sigma 0 and position 0."""

    def add_blocks(self, args: ModelArgs) -> None:
        self.peer_blocks = nn.ModuleList(PeerBlock(args) for _ in range(args.num_fusion_blocks))

    def block_groups(self) -> tuple[nn.ModuleList, ...]:
        return (self.peer_blocks,)

    def modulations(self, video: Stream | None, audio: Stream | None) -> tuple[StreamModulation | None, ...]:
        sigmas = [stream.sigma for stream in (video, audio) if stream]
        return self.time(
            video.sigma if video else None, audio.sigma if audio else None, torch.zeros_like(sigmas[0][:, :1])
        )

    def mix(self, inputs: Inputs) -> StreamPair:
        num_context, (num_video, num_audio) = inputs.context.shape[1], inputs.counts
        places = torch.arange(num_context + num_video + num_audio, device=inputs.context.device)
        kinds = (places >= num_context).long() + (places >= num_context + num_video)
        mask = peer_mask(inputs, kinds, self.args.attend_text_padding)
        joint = torch.cat([inputs.context, *(x for x in inputs.tokens if x is not None)], dim=1)
        still = torch.ones(
            num_context, 1, self.args.head_dim // 2, dtype=torch.complex64, device=joint.device
        )
        freqs_cis = torch.cat([still, *(part for part in inputs.freqs_cis if part is not None)])
        video, audio, context = inputs.modulations
        sizes = [num_context, *(count for count in inputs.counts if count)]
        for index, block in enumerate(self.peer_blocks):
            joint = block(
                joint, tuple(m.fusion[index] for m in (context, video, audio) if m), sizes, freqs_cis, mask
            )
        _, video_tokens, audio_tokens = joint.split((num_context, num_video, num_audio), dim=1)
        return video_tokens, audio_tokens


def peer_mask(inputs: Inputs, kinds: Tensor, attend_padding: bool) -> Tensor | None:
    """[B, 1, N, N] bool over tokens of kinds [N] (0 context, 1 video, 2 audio), True = attends; None = all.

    Where a sample's modalities are apart, its context attends to itself only, or it would carry information
    between them. Dropped text and padding are seen only by themselves.
    """
    conditioning = inputs.conditioning
    joined, kept = conditioning.modalities_joined, conditioning.text_kept
    text = conditioning.text_mask | attend_padding
    whole = conditioning.all_kept and (attend_padding or not conditioning.text_padded)
    if whole and conditioning.all_joined and all(valid is None for valid in inputs.valid):
        return None
    streams = [
        x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        for x, valid in zip(inputs.tokens, inputs.valid, strict=True)
        if x is not None
    ]
    valid = torch.cat([text & kept[:, None], *streams], dim=1)
    reads_context = kinds[None, :] == 0
    allowed = joined[:, None, None] | (kinds[:, None] == kinds[None, :]) | reads_context
    # every token attends to itself: softmax stays finite
    own = torch.eye(len(kinds), dtype=torch.bool, device=kinds.device)
    return ((allowed & valid[:, None, :]) | own)[:, None]
