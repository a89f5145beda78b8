"""Matmul FLOPs of one clip, exact from the sizes (multiply-adds x 2): linear, convolution, attention.

What is not a matmul (norms, gates, rotations, softmax) is left out, as torch's own counter leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pretrain.model.args import ModelArgs, Paradigm


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Sizes of one clip as the model sees it; 0 tokens = the modality is absent."""

    video: int  # tokens
    audio: int  # tokens
    context: int  # text states, padding included
    references: int = 1
    video_levels: int = 1  # latent frames where a first frame is given, else 1
    # False: modalities apart; saves attention between them, except where it is masked (unified)
    joined: bool = True

    @property
    def streams(self) -> list[int]:
        """Tokens of each present modality."""
        return [count for count in (self.video, self.audio) if count]


def forward_flops(args: ModelArgs, shape: ClipShape) -> int:
    """One forward pass of one clip."""
    return _first_maps(args, shape) + _other_maps(args, shape) + block_flops(args, shape)


def reused_flops(args: ModelArgs, shape: ClipShape) -> int:
    """A pass that reuses what the blocks have added: maps of latents and sigmas, and the heads."""
    bare = replace(shape, context=0, references=0)
    return _first_maps(args, bare) + _other_maps(args, bare)


def training_flops(args: ModelArgs, shape: ClipShape) -> int:
    """Forward and backward of one clip: each matmul again for its weight gradient and its input gradient.

    The first maps of latents, text and sigmas need no gradient of their input.
    """
    return 3 * forward_flops(args, shape) - _first_maps(args, shape)


def frozen_training_flops(args: ModelArgs, shape: ClipShape) -> int:
    """Forward and backward of one clip where the weights are frozen, as under an adapter.

    Each matmul again for its input gradient, and those of attention once more, whose both sides are
    activations. What the first block and the context's maps do without is not taken off, the adapter's own is
    not added: a few percent of a model of many blocks.
    """
    return 2 * forward_flops(args, shape) + self_attention_flops(args, shape) + _cross_attention(args, shape)


def adapter_flops(args: ModelArgs, shape: ClipShape, rank: int) -> int:
    """Forward pass of LoRA on all maps of attention and feed-forward of one clip; paradigm nava only.

    Of a backward pass twice that: the gradients of both factors and of their inputs. Raises ValueError for
    another paradigm.
    """
    if args.paradigm != "nava":
        raise ValueError(f"the FLOPs of adapters are known for paradigm nava, not {args.paradigm}")
    tokens, width = shape.video + shape.audio, args.width

    def low(rows: int, inputs: int, outputs: int) -> int:
        return _map(rows, inputs, rank) + _map(rows, rank, outputs)

    # q, k, v, o of self-attention, q and o of cross-attention, both maps of the FFN
    of_tokens = 6 * low(tokens, width, width) + 2 * low(tokens, width, args.ffn_width)
    of_context = 2 * low(shape.context, width, width)
    streams = args.num_alignment_blocks * len(shape.streams) + args.num_fusion_blocks
    return (args.num_alignment_blocks + args.num_fusion_blocks) * of_tokens + streams * of_context


def self_attention_flops(args: ModelArgs, shape: ClipShape) -> int:
    """Of the forward pass: queries times as many keys, and their values, in all blocks."""
    alone = sum(_attend(args, count, count) for count in shape.streams)
    if args.paradigm == "dual_tower":
        return args.num_alignment_blocks * alone
    if args.paradigm == "unified":
        tokens = shape.context + shape.video + shape.audio
        return args.num_fusion_blocks * _attend(args, tokens, tokens)
    tokens = shape.video + shape.audio
    return (args.num_alignment_blocks + args.num_fusion_blocks) * (
        _attend(args, tokens, tokens) if shape.joined else alone
    )


def params_met_per_video_token(args: ModelArgs) -> int:
    """Weights of the maps that a video token passes, counted once, without biases and norms.

    Cross-attention's k and v are not among them: the context's tokens meet those, and there are few of them.
    """
    one, none = ClipShape(video=1, audio=0, context=0), ClipShape(video=0, audio=0, context=0)
    attention = _attend(args, 1, 1) * (args.num_alignment_blocks + args.num_fusion_blocks)
    sigmas = (
        _map(1, args.time_frequencies, args.width) + _square(args, 1) + _map(1, args.width, 6 * args.width)
    )
    met = forward_flops(args, one) - forward_flops(args, none) - attention - sigmas
    return met // 2


def block_flops(args: ModelArgs, shape: ClipShape) -> int:
    """Forward pass of the blocks alone."""
    return {"nava": _nava, "dual_tower": _dual_tower, "unified": _unified}[args.paradigm](args, shape)


def _map(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _attend(args: ModelArgs, queries: int, keys: int) -> int:
    return 4 * queries * keys * args.width


def _square(args: ModelArgs, rows: int) -> int:
    return _map(rows, args.width, args.width)


def _ffn(args: ModelArgs, tokens: int) -> int:
    return 2 * _map(tokens, args.width, args.ffn_width)


def _alone(args: ModelArgs, tokens: int) -> int:
    """Self-attention of `tokens` and their FFN."""
    return 4 * _square(args, tokens) + _attend(args, tokens, tokens) + _ffn(args, tokens)


def _cross(args: ModelArgs, tokens: int, seen: int) -> int:
    return 2 * _square(args, tokens) + 2 * _square(args, seen) + _attend(args, tokens, seen)


def _nava(args: ModelArgs, shape: ClipShape) -> int:
    tokens = shape.video + shape.audio
    between = 0 if shape.joined else 2 * _attend(args, shape.video, shape.audio)
    alignment = (
        _alone(args, tokens) - between + sum(_cross(args, count, shape.context) for count in shape.streams)
    )
    fusion = _alone(args, tokens) - between + _cross(args, tokens, shape.context)
    return args.num_alignment_blocks * alignment + args.num_fusion_blocks * fusion


def _dual_tower(args: ModelArgs, shape: ClipShape) -> int:
    towers = sum(_alone(args, count) + _cross(args, count, shape.context) for count in shape.streams)
    both = shape.video and shape.audio and shape.joined
    meeting = _cross(args, shape.video, shape.audio) + _cross(args, shape.audio, shape.video) if both else 0
    return args.num_alignment_blocks * (towers + meeting)


def _cross_attention(args: ModelArgs, shape: ClipShape) -> int:
    """Of the forward pass: queries times keys of the context or of the other modality, and their values."""
    apart = sum(_attend(args, count, shape.context) for count in shape.streams)
    if args.paradigm == "unified":  # the context is among the tokens
        return 0
    if args.paradigm == "dual_tower":
        meeting = 2 * _attend(args, shape.video, shape.audio) if shape.joined else 0
        return args.num_alignment_blocks * (apart + meeting)
    return (args.num_alignment_blocks + args.num_fusion_blocks) * apart


def _unified(args: ModelArgs, shape: ClipShape) -> int:
    return args.num_fusion_blocks * _alone(args, shape.context + shape.video + shape.audio)


def _sigma_groups(args: ModelArgs, shape: ClipShape) -> int:
    streams: dict[Paradigm, int] = {"unified": 1}  # the context has a sigma too
    return (
        (shape.video_levels if shape.video else 0) + (1 if shape.audio else 0) + streams.get(args.paradigm, 0)
    )


def _first_maps(args: ModelArgs, shape: ClipShape) -> int:
    width = args.width
    return (
        _map(shape.video, args.video_channels * args.patch_size**2, width)
        + _map(shape.audio, args.audio_channels * args.audio_embed_kernel, width)
        + _map(shape.context, args.text_width, width)
        + _map(_sigma_groups(args, shape), args.time_frequencies, width)
    )


def _other_maps(args: ModelArgs, shape: ClipShape) -> int:
    width, window, groups = args.width, args.audio_embed_kernel, _sigma_groups(args, shape)
    audio_mlp = 3 * _map(shape.audio, width * window, args.audio_embed_hidden)
    timbre = _map(shape.references, args.speaker_dim, width) + _square(args, shape.references)
    time = _square(args, groups) + _map(groups, width, 6 * width)
    heads = _map(shape.video, width, args.video_channels * args.patch_size**2) + _map(
        shape.audio, width, args.audio_channels
    )
    return audio_mlp + _square(args, shape.context) + timbre + time + heads
