"""Bytes of activations, from the shapes of what a forward and a backward pass make."""

from __future__ import annotations

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_setup import Setup
from pretrain.model.plan_sizes import BF16, FP32, Base, rounded_map

COMPLEX64 = 8


def tokens_here(clip: ClipShape, setup: Setup) -> float:
    """Tokens of a micro-batch on one GPU."""
    return (clip.video + clip.audio) / setup.context * setup.local_batch


def saved_by_block(args: ModelArgs, tokens: float, context: int, rank: int = 0) -> float:
    """Bytes one block keeps for its backward pass, for `tokens` that attend to `context` text states.

    Per token, in bf16 unless noted: two modulated norms (fp32 in and out, then the map's input), q and k
    before and after their norm, v, the attended, the two gated updates; cross-attention's norm, q twice, the
    attended; the FFN's hidden states before and after GELU. Flash attention keeps no scores. With adapters
    of `rank` scales and gates have no gradient, for which a norm's answer and an update are kept; what an
    adapter's first map answers is.
    """
    width = args.width
    norms = 2 * ((1 if rank else 2) * FP32 + BF16) * width
    self_attention = 6 * BF16 * width
    cross = 5 * BF16 * width
    updates = 0 if rank else 2 * BF16 * width
    adapters = 10 * BF16 * rank
    per_token = norms + self_attention + cross + updates + adapters + 2 * BF16 * args.ffn_width
    return tokens * per_token + context * 3 * BF16 * width


def made_by_backward(args: ModelArgs, tokens: float, rank: int = 0, base: Base = "fp32") -> float:
    """Bytes of what lives beside that which a block keeps, where that is most: in its last map's backward.

    Gradients of the block's answer and of the FFN's update, then of the hidden states; with adapters once by
    the map, once by the adapter and their sum, while the hidden states after GELU are gone, as they are when
    a quantised map becomes a weight.
    """
    hidden = tokens * BF16 * args.ffn_width
    return tokens * BF16 * 2 * args.width + (max(2 * hidden, rounded_map(args, base)) if rank else hidden)


def saved_by_heads(args: ModelArgs, tokens: float, trained: bool) -> float:
    """Bytes that the heads keep from the end of the forward pass: their norm's fp32 input and, where they are
    trained, its answer and the map's input."""
    return tokens * args.width * (2 * FP32 + BF16 if trained else FP32)


def saved_by_embedders(args: ModelArgs, clip: ClipShape, batch: int, trained: bool) -> float:
    """Bytes that embedders keep and that all blocks read: text and its tokens, turns of the positions.

    Where they are trained also the latents in bf16, the windows of the sound's convolutions and their hidden
    states.
    """
    turns = 2 * (clip.video + clip.audio) * args.head_dim // 2 * COMPLEX64  # of each stream, and joined
    if not trained:
        return turns + 2 * clip.context * batch * args.width * BF16
    text = clip.context * batch * (args.text_width + 3 * args.width) * BF16
    windows = args.audio_embed_kernel * (args.audio_channels + 2 * args.width + args.audio_embed_hidden)
    sound = clip.audio * batch * (windows + 3 * args.audio_embed_hidden) * BF16
    return turns + text + sound + latent_bytes(args, clip, batch) * BF16 / FP32


def latent_bytes(args: ModelArgs, clip: ClipShape, batch: int) -> float:
    """Bytes of the latents of a batch, fp32."""
    values = clip.video * args.video_channels * args.patch_size**2 + clip.audio * args.audio_channels
    return float(FP32 * values * batch)


def text_bytes(args: ModelArgs, clip: ClipShape, batch: int) -> float:
    """Bytes of the text states of a batch as they are given, fp32."""
    return float(FP32 * clip.context * args.text_width * batch)
