"""NAVA: video and audio in one self-attention from the first block on, the context outside, by
cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import plan_attention
from pretrain.model.blocks import AlignmentBlock, FusionBlock, cross_context
from pretrain.model.shell import AVTransformer, Inputs, Pair


class NavaTransformer(AVTransformer):
    """Align-then-Fuse MMDiT (paper section 3): double-stream alignment blocks, then single-stream fusion
    blocks."""

    def add_blocks(self, args: ModelArgs) -> None:
        self.double_blocks = nn.ModuleList(AlignmentBlock(args) for _ in range(args.num_alignment_blocks))
        self.single_blocks = nn.ModuleList(FusionBlock(args) for _ in range(args.num_fusion_blocks))

    def block_groups(self) -> tuple[nn.ModuleList, ...]:
        return self.double_blocks, self.single_blocks

    def mix(self, given: Inputs) -> Pair:
        counts = given.share.whole if given.share else given.counts
        plan = plan_attention(_joint_valid(given, counts), given.conditioning, *counts, given.share)
        context = cross_context(given.context, given.conditioning, self.args.attend_text_padding)
        tokens, modulations = given.tokens, given.modulations
        for index, block in enumerate(self.double_blocks):
            picked = tuple(m.alignment[index] if m else None for m in modulations)
            tokens = block(tokens, picked, given.freqs_cis, plan, context)
        joint = torch.cat([x for x in tokens if x is not None], dim=1)
        freqs_cis = torch.cat([part for part in given.freqs_cis if part is not None])
        for index, block in enumerate(self.single_blocks):
            joint = block(joint, tuple(m.fusion[index] for m in modulations if m), freqs_cis, plan, context)
        video, audio = joint.split((plan.num_video, plan.num_audio), dim=1)
        return video, audio


def _joint_valid(given: Inputs, counts: tuple[int, int]) -> Tensor | None:
    """[B, N] over the concatenated tokens of whole samples; None where nothing is padded."""
    if all(valid is None for valid in given.valid):
        return None
    joined = given.conditioning.modalities_joined
    pairs = zip(counts, given.valid, strict=True)
    return torch.cat(
        [joined.new_ones(len(joined), count) if valid is None else valid for count, valid in pairs], dim=1
    )
