"""Joint self-attention over [video; audio] and cross-attention to the external context.

Context never enters self-attention. Which token may see which is decided once per forward, in
`AttentionPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.context_parallel import Counts, Share, heads_to_tokens, tokens_to_heads
from pretrain.model.rope import rotate
from pretrain.model.scaled_attention import scaled_attention
from pretrain.model.width_norm import WidthNorm
from pretrain.types import Conditioning

# Per sample: above, a mask costs more than two calls more, and at 32 K tokens neither it nor its kernel fits.
MASKED_SCORES = 1 << 18


@dataclass(frozen=True)
class AttentionPlan:
    """How the joint sequence attends: in one call, in one call per modality, each for its samples, or in one
    call under a mask."""

    num_video: int  # tokens on this rank
    num_audio: int
    apart: bool  # True: no sample joins its modalities, so two calls and no mask
    mask: Tensor | None  # [B, 1, N, N] bool, True = may attend; None = everything valid and joined
    rows: tuple[Tensor, Tensor] | None = (
        None  # samples that join and samples that do not, where each group has calls of its own
    )
    share: Share | None = (
        # where a context group's ranks hold the tokens together; N is then over all of them, rank by rank
        None
    )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, n, d] each of this rank's tokens -> [B, heads, n, d]."""
        if self.share is None:
            return self._attend(q, k, v, ((self.num_video, self.num_audio),))
        counts, group = self.share.counts, self.share.group
        tokens = [video + audio for video, audio in counts]
        q, k, v = tokens_to_heads(q, k, v, tokens, group)
        return heads_to_tokens(self._attend(q, k, v, counts), tokens, group)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, counts: Counts) -> Tensor:
        if self.rows:
            joined, apart = self.rows
            whole = scaled_attention(q[joined], k[joined], v[joined], mask=None)
            attended = torch.cat([whole, self._attend_apart(q[apart], k[apart], v[apart], counts)])
            return attended[torch.cat(self.rows).argsort()]
        return self._attend_apart(q, k, v, counts) if self.apart else scaled_attention(q, k, v, self.mask)

    def _attend_apart(self, q: Tensor, k: Tensor, v: Tensor, counts: Counts) -> Tensor:
        sizes = [count for pair in counts for count in pair]
        pieces = [x.split(sizes, dim=2) for x in (q, k, v)]
        out: list[Tensor] = [q] * len(sizes)
        for kind in (0, 1):
            attended = scaled_attention(*(torch.cat(piece[kind::2], dim=2) for piece in pieces), mask=None)
            out[kind::2] = attended.split(sizes[kind::2], dim=2)
        return torch.cat(out, dim=2)


def plan_attention(
    valid: Tensor | None,
    conditioning: Conditioning,
    num_video: int,
    num_audio: int,
    share: Share | None = None,
) -> AttentionPlan:
    """Plan for samples whose conditioning says who is joined and, where lengths are mixed, `valid` [B, N]
    tokens; padding is attended to by nobody. Counts and `valid` are of whole samples, also where a `share`
    says that this rank holds a part of them."""
    video, audio = share.counts[share.group.rank] if share else (num_video, num_audio)
    all_joined = not (num_video and num_audio) or conditioning.all_joined
    if valid is None and (all_joined or not conditioning.any_joined):
        return AttentionPlan(video, audio, apart=not all_joined, mask=None, share=share)
    if valid is None and (num_video + num_audio) ** 2 > MASKED_SCORES:
        return AttentionPlan(
            video, audio, apart=False, mask=None, rows=conditioning.rows_by_joining, share=share
        )
    joined = conditioning.modalities_joined
    places = (
        share.order(joined.device) if share else torch.arange(num_video + num_audio, device=joined.device)
    )
    is_audio = places >= num_video
    mask = joined[:, None, None] | (is_audio[:, None] == is_audio)
    if valid is not None:
        own = torch.eye(
            mask.shape[1], dtype=torch.bool, device=mask.device
        )  # a padded query sees itself: softmax stays finite
        mask = (mask & valid[:, places][:, None, :]) | own
    return AttentionPlan(video, audio, apart=False, mask=mask[:, None], share=share)


class Projections(nn.Module):
    """q, k, v, o of one attention, with RMSNorm of q and k over the whole width (not per head)."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.head_dim = args.head_dim
        self.q, self.k, self.v, self.o = (nn.Linear(args.width, args.width) for _ in range(4))
        self.norm_q, self.norm_k = (WidthNorm(args.width, eps=args.eps) for _ in range(2))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def rotated_qkv(self, x: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, width] and complex freqs_cis [N, 1, d // 2] -> rotated q and k, and v: [B, N, heads, d]."""
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(x)))
        return rotate(q, freqs_cis), rotate(k, freqs_cis), self.heads(self.v(x))

    def cross(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from x [B, N, width] to context [B, S, width] under mask [B, 1, 1, S]."""
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(context)))
        v = self.heads(self.v(context))
        out = scaled_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return self.o(out.transpose(1, 2).flatten(2))
