"""Dual tower: self-attention per modality, text by cross-attention, and modules across the towers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import AttentionPlan, Projections, plan_attention, scaled_attention
from pretrain.model.blocks import Context, FeedForward, add_cross, add_ffn, cross_context
from pretrain.model.modulation import gated_add, modulated_norm
from pretrain.model.rope import rotate
from pretrain.model.shell import AVTransformer, Inputs, StreamPair


class Meeting(NamedTuple):
    """What the cross-modal modules may see; towers whose samples are all apart do not meet."""

    joined: Tensor | None  # [B, 1, 1], 0 = this sample's towers stay apart; None = all meet
    masks: StreamPair  # [B, 1, 1, N] bool over the (video, audio) tokens that are looked at; None = all


class CrossModal(nn.Module):
    """x + attention from one tower to the other, both with RoPE of the video's rate, so equal times match."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.norm, self.norm_other = (nn.LayerNorm(args.width, eps=args.eps) for _ in range(2))
        self.attn = Projections(args)

    def forward(
        self,
        x: Tensor,
        other: Tensor,
        freqs_cis: Tensor,
        other_turns: Tensor,
        mask: Tensor | None,
        joined: Tensor | None,
    ) -> Tensor:
        """x [B, N, width], other [B, M, width], their freqs_cis; mask [B, 1, 1, M], joined [B, 1, 1]."""
        attn, dtype = self.attn, self.norm.weight.dtype
        seen = self.norm_other(other.to(dtype))
        q = rotate(attn.heads(attn.norm_q(attn.q(self.norm(x.to(dtype))))), freqs_cis)
        k, v = rotate(attn.heads(attn.norm_k(attn.k(seen))), other_turns), attn.heads(attn.v(seen))
        update = attn.o(
            scaled_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
            .transpose(1, 2)
            .flatten(2)
        )
        return x + (update if joined is None else update * joined).to(x.dtype)


class Tower(nn.Module):
    """One modality's side of a block."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.eps = args.eps
        self.self_attn, self.cross_attn, self.meet = Projections(args), Projections(args), CrossModal(args)
        self.norm3, self.ffn = nn.LayerNorm(args.width, eps=args.eps), FeedForward(args)

    def alone(
        self, x: Tensor, modulation: Tensor, freqs_cis: Tensor, plan: AttentionPlan, context: Context
    ) -> Tensor:
        """Self-attention over this modality, then text."""
        hidden = modulated_norm(x, modulation[0], modulation[1], self.eps).to(
            self.self_attn.norm_q.weight.dtype
        )
        q, k, v = (part.transpose(1, 2) for part in self.self_attn.rotated_qkv(hidden, freqs_cis))
        x = gated_add(x, self.self_attn.o(plan.attend(q, k, v).transpose(1, 2).flatten(2)), modulation[2])
        return add_cross(x, self.cross_attn, self.norm3, context)


class TowerPair(nn.Module):
    """Both towers one step: each alone, then each looks at what the other has become, then its FFN."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.video, self.audio = Tower(args), Tower(args)

    def forward(
        self,
        streams: StreamPair,
        modulations: StreamPair,
        freqs_cis: StreamPair,
        plans: tuple[AttentionPlan, AttentionPlan],
        context: Context,
        meeting: Meeting | None,
    ) -> StreamPair:
        """(video, audio) tokens [B, N, width], None where absent; meeting None = the towers stay apart."""
        towers = (self.video, self.audio)
        out: list[Tensor | None] = [
            None if x is None or m is None or freqs is None else tower.alone(x, m, freqs, plan, context)
            for tower, x, m, freqs, plan in zip(towers, streams, modulations, freqs_cis, plans, strict=True)
        ]
        (video, audio), (video_freqs_cis, audio_freqs_cis) = out, freqs_cis
        if (
            meeting
            and video is not None
            and audio is not None
            and video_freqs_cis is not None
            and audio_freqs_cis is not None
        ):
            out[0] = self.video.meet(
                video, audio, video_freqs_cis, audio_freqs_cis, meeting.masks[1], meeting.joined
            )
            out[1] = self.audio.meet(
                audio, video, audio_freqs_cis, video_freqs_cis, meeting.masks[0], meeting.joined
            )
        finished = [
            None if x is None or m is None else add_ffn(x, tower.ffn, m, tower.eps)
            for tower, x, m in zip(towers, out, modulations, strict=True)
        ]
        return finished[0], finished[1]


class DualTowerTransformer(AVTransformer):
    """`num_alignment_blocks` pairs of tower blocks; only the time path and text embedding are shared."""

    def add_blocks(self, args: ModelArgs) -> None:
        self.tower_blocks = nn.ModuleList(TowerPair(args) for _ in range(args.num_alignment_blocks))

    def block_groups(self) -> tuple[nn.ModuleList, ...]:
        return (self.tower_blocks,)

    def mix(self, inputs: Inputs) -> StreamPair:
        joined = inputs.conditioning.modalities_joined
        plans = tuple(
            plan_attention(valid, inputs.conditioning, count, 0)
            for valid, count in zip(inputs.valid, inputs.counts, strict=True)
        )
        context = cross_context(inputs.context, inputs.conditioning, self.args.attend_text_padding)
        meeting = self._meeting(inputs, joined) if inputs.conditioning.any_joined else None
        tokens = inputs.tokens
        for index, block in enumerate(self.tower_blocks):
            picked = tuple(m.alignment[index] if m else None for m in inputs.modulations[:2])
            tokens = block(tokens, picked, inputs.freqs_cis, plans, context, meeting)
        return tokens

    def _meeting(self, inputs: Inputs, joined: Tensor) -> Meeting:
        video, audio = (None if valid is None else valid[:, None, None] for valid in inputs.valid)
        return Meeting(
            None if inputs.conditioning.all_joined else joined[:, None, None].to(inputs.context.dtype),
            (video, audio),
        )
