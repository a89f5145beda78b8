"""Timbre-in-Context: a reference voice is one context token at its speech span's start (paper section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs


class TimbreToken(nn.Module):
    """LayerNorm(Linear(SiLU(Linear(LayerNorm(e))))); a learned null token where e is all zeros."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width = args.width
        self.net = nn.Sequential(
            nn.LayerNorm(args.speaker_dim),
            nn.Linear(args.speaker_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.out_norm = nn.LayerNorm(width)
        self.null_token = nn.Parameter(torch.zeros(width))

    def forward(self, speakers: Tensor) -> Tensor:
        """[B, R, 192] -> [B, R, width]."""
        absent = (speakers == 0).all(dim=-1, keepdim=True)
        tokens = self.out_norm(self.net(speakers.to(self.null_token.dtype)))
        return torch.where(absent, self.null_token, tokens)


def place_timbre_tokens(context: Tensor, tokens: Tensor, positions: Tensor, keep_text: bool) -> Tensor:
    """Context [B, S, width] with tokens [B, R, width] at positions [B, R]; -1 places nothing.

    A token replaces the context vector of its place, or is added to it where `keep_text`.
    """
    if positions.shape[1] == 0:
        return context
    length = context.shape[1]
    # absent spans go to a spare row that is dropped
    slots = torch.where(positions < 0, length, positions)
    padded = torch.cat([context, context.new_zeros(context.shape[0], 1, context.shape[2])], dim=1)
    index = slots[..., None].expand(-1, -1, context.shape[2])
    tokens = tokens.to(context.dtype)
    placed = padded.scatter_add(1, index, tokens) if keep_text else padded.scatter(1, index, tokens)
    return placed[:, :length]
