"""NAVA's forward pass in plain fp32, written from shared/reference/nava.md alone: a test oracle that shares
no code with the model.

Loops over samples, modalities and heads; no batching, no masks, no fused kernels. Where the description
leaves a reading open:
- `_audio` of an attention weight: on the last name, `self_attn.q_audio.weight` (parameter `audio_suffix`;
  "module": `self_attn_audio.q`).
- Per-modality feed-forward and norm: `ffn_audio.{0,2}` and `norm3_audio` beside the others, as
  `modulation_audio`; `null_token`: (width,).
- A head's order is shift, scale; its table is added to the time embedding as it is (before the projection's
  SiLU), as in Wan2.2.
- Time sinusoid: 1000 s times 10000^(-i/half), half = 128, as in Wan; this 10000 is not `rope_theta`.
- Time embedding, time projection, text embedding and the context are one for both modalities; only block
  tables are per modality.
- Rotary frequencies run over each axis's own size, theta^(-2i/44), /42, /42, as in Wan; audio uses the
  temporal ones.
- Both clocks start at 0: video at its latent frame index, audio token p at p * video_rate / audio_rate; no
  offset between modalities.
- Rotary comes after norm_q/norm_k, in self-attention only (cross-attention has the norms, no rotary); scale
  1/sqrt(head size); v is bare.
- Every norm's eps is 1e-6, the speaker token's two as well (`Sizes.speaker_eps`; torch's own is 1e-5).
- The null token does not pass out_norm (`Sizes.null_token_normed`). The gated convolution has no residual and
  no norm, and pads by zeros.
- A dropped text skips the whole cross-attention term, o's bias too; so does an empty text when the padding is
  not attended to.
- A speaker position beyond the valid text is seen only where the padding is; two speakers at one position:
  the later wins.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Ckpt = dict[str, Tensor]
Suffix = Literal["module", "leaf"]
PATCH = 2


@dataclass(frozen=True)
class Sizes:
    width: int
    num_heads: int
    ffn_width: int
    num_double: int
    num_single: int
    text_width: int
    audio_hidden: int
    time_frequencies: int = 256
    audio_kernel: int = 7
    video_channels: int = 48
    audio_channels: int = 128
    speaker_dim: int = 192
    split_norm_ffn: bool = False
    eps: float = 1e-6
    rope_theta: float = 10000.0
    speaker_eps: float = 1e-6
    null_token_normed: bool = False


def attention_key(block: str, module: str, leaf: str, of_audio: bool, audio_suffix: Suffix) -> str:
    if not of_audio:
        return f"{block}.{module}.{leaf}"
    return f"{block}.{module}.{leaf}_audio" if audio_suffix == "leaf" else f"{block}.{module}_audio.{leaf}"


def block_names(sizes: Sizes) -> list[str]:
    return [f"double_blocks.{i}" for i in range(sizes.num_double)] + [
        f"single_blocks.{i}" for i in range(sizes.num_single)
    ]


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def layout_shapes(sizes: Sizes, audio_suffix: Suffix = "leaf") -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of NAVA.safetensors."""
    width, ffn_width, kernel, hidden = sizes.width, sizes.ffn_width, sizes.audio_kernel, sizes.audio_hidden
    shapes = _affine("patch_embedding", width, sizes.video_channels, 1, PATCH, PATCH)
    shapes |= _affine("patch_embedding_audio.0", width, sizes.audio_channels, kernel)
    for leaf, fan_out, fan_in in (("w1", hidden, width), ("w2", width, hidden), ("w3", hidden, width)):
        shapes[f"patch_embedding_audio.2.{leaf}.weight"] = (fan_out, fan_in, kernel)
    shapes |= _affine("text_embedding.0", width, sizes.text_width) | _affine("text_embedding.2", width, width)
    shapes |= _affine("time_embedding.0", width, sizes.time_frequencies) | _affine(
        "time_embedding.2", width, width
    )
    shapes |= _affine("time_projection.1", 6 * width, width)
    shapes |= _affine("speaker_embedding.net.0", sizes.speaker_dim) | _affine(
        "speaker_embedding.net.1", width, sizes.speaker_dim
    )
    shapes |= _affine("speaker_embedding.net.3", width, width) | _affine("speaker_embedding.out_norm", width)
    shapes["speaker_embedding.null_token"] = (width,)
    for block in block_names(sizes):
        for of_audio in (False, True) if block.startswith("double_blocks") else (False,):
            end = "_audio" if of_audio else ""
            shapes[f"{block}.modulation{end}.modulation"] = (1, 6, width)
            for module in ("self_attn", "cross_attn"):
                for leaf in ("q", "k", "v", "o"):
                    shapes |= _affine(
                        attention_key(block, module, leaf, of_audio, audio_suffix), width, width
                    )
                for leaf in ("norm_q", "norm_k"):
                    shapes[attention_key(block, module, leaf, of_audio, audio_suffix) + ".weight"] = (width,)
            if not of_audio or sizes.split_norm_ffn:
                shapes |= _affine(f"{block}.norm3{end}", width)
                shapes |= _affine(f"{block}.ffn{end}.0", ffn_width, width) | _affine(
                    f"{block}.ffn{end}.2", width, ffn_width
                )
    for head, features in (
        ("head", sizes.video_channels * PATCH * PATCH),
        ("head_audio", sizes.audio_channels),
    ):
        shapes |= _affine(f"{head}.head", features, width) | {f"{head}.modulation": (1, 2, width)}
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def random_checkpoint(sizes: Sizes, seed: int, audio_suffix: Suffix = "leaf") -> Ckpt:
    """Random everywhere and nowhere small: norm weights around 1, biases, tables and heads away from zero."""
    generator = torch.Generator().manual_seed(seed)
    ckpt: Ckpt = {}
    for name, shape in layout_shapes(sizes, audio_suffix).items():
        drawn_wide = name.endswith((".bias", ".modulation", ".null_token"))
        spread = 0.5 if drawn_wide else 0.3 if len(shape) == 1 else 1.0 / math.sqrt(math.prod(shape[1:]))
        ckpt[name] = float(len(shape) == 1 and not drawn_wide) + spread * torch.randn(
            shape, generator=generator
        )
    return ckpt


def linear(ckpt: Ckpt, name: str, x: Tensor) -> Tensor:
    return x @ ckpt[f"backbone.{name}.weight"].T + ckpt[f"backbone.{name}.bias"]


def normalise(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)


def affine_norm(ckpt: Ckpt, name: str, x: Tensor, eps: float) -> Tensor:
    return normalise(x, eps) * ckpt[f"backbone.{name}.weight"] + ckpt[f"backbone.{name}.bias"]


def two_linears(ckpt: Ckpt, name: str, x: Tensor) -> Tensor:
    return linear(ckpt, f"{name}.2", F.gelu(linear(ckpt, f"{name}.0", x), approximate="tanh"))


def rotary_angles(coordinates: Tensor, head_dim: int, theta: float) -> Tensor:
    """[N, 3] coordinates (t, h, w) -> [N, head_dim/2] angles in fp64: the pairs of t, then of h, then of
    w."""
    side = 2 * (head_dim // 6)
    frequencies = [
        theta ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        for dims in (head_dim - 2 * side, side, side)
    ]
    return torch.cat(
        [coordinates[:, axis, None].double() * one for axis, one in enumerate(frequencies)], dim=1
    )


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (x0, x1), (x2, x3), ... of one head [N, head_dim]."""
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd = x[:, 0::2], x[:, 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    q_angles: Tensor | None = None,
    k_angles: Tensor | None = None,
) -> Tensor:
    size = q.shape[1] // num_heads
    outputs = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        one_q, one_k = q[:, part], k[:, part]
        if q_angles is not None and k_angles is not None:
            one_q, one_k = rotate(one_q, q_angles), rotate(one_k, k_angles)
        outputs.append(torch.softmax(one_q @ one_k.T / math.sqrt(size), dim=-1) @ v[:, part])
    return torch.cat(outputs, dim=1)


@dataclass
class Stream:  # the tokens of one modality of one sample
    of_audio: bool
    x: Tensor  # [N, width]
    angles: Tensor  # [N, head_dim/2]
    time: Tensor  # [N, width]: the time embedding, for the head
    shifts: Tensor  # [N, 6, width]: the time projection, for the blocks
    grid: tuple[int, int, int] = (0, 0, 0)  # of video: frames, rows, columns


def time_embedding(ckpt: Ckpt, sizes: Sizes, levels: Tensor) -> tuple[Tensor, Tensor]:
    """[N] flow levels -> the embedding [N, width] and the projection [N, 6, width]."""
    frequencies = 10000.0 ** (
        -torch.arange(0, sizes.time_frequencies, 2, dtype=torch.float64) / sizes.time_frequencies
    )
    angles = 1000.0 * levels.double()[:, None] * frequencies[None, :]
    sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    embedded = linear(ckpt, "time_embedding.2", F.silu(linear(ckpt, "time_embedding.0", sinusoid)))
    return embedded, linear(ckpt, "time_projection.1", F.silu(embedded)).reshape(-1, 6, sizes.width)


def video_stream(ckpt: Ckpt, sizes: Sizes, latent: Tensor, levels: Tensor) -> Stream:
    frames, rows, columns = latent.shape[1], latent.shape[2] // PATCH, latent.shape[3] // PATCH
    patches = (
        latent.reshape(-1, frames, rows, PATCH, columns, PATCH)
        .permute(1, 2, 4, 0, 3, 5)
        .flatten(3)
        .flatten(0, 2)
    )
    x = patches @ ckpt["backbone.patch_embedding.weight"].flatten(1).T + ckpt["backbone.patch_embedding.bias"]
    grid = torch.tensor([(t, h, w) for t in range(frames) for h in range(rows) for w in range(columns)])
    angles = rotary_angles(grid, sizes.width // sizes.num_heads, sizes.rope_theta)
    return Stream(
        False,
        x,
        angles,
        *time_embedding(ckpt, sizes, levels.repeat_interleave(rows * columns)),
        (frames, rows, columns),
    )


def audio_stream(ckpt: Ckpt, sizes: Sizes, latent: Tensor, levels: Tensor, clock: Tensor) -> Stream:
    def conv(x: Tensor, name: str) -> Tensor:
        name = f"backbone.patch_embedding_audio.{name}"
        return F.conv1d(x, ckpt[f"{name}.weight"], ckpt.get(f"{name}.bias"), padding=sizes.audio_kernel // 2)

    first = F.silu(conv(latent[None], "0"))
    x = conv(F.silu(conv(first, "2.w1")) * conv(first, "2.w3"), "2.w2")[0].T
    coordinates = torch.stack(
        [clock, torch.zeros_like(clock), torch.zeros_like(clock)], dim=1
    )  # h = w = 0: those pairs do not turn
    angles = rotary_angles(coordinates, sizes.width // sizes.num_heads, sizes.rope_theta)
    return Stream(True, x, angles, *time_embedding(ckpt, sizes, levels))


def speaker_token(ckpt: Ckpt, sizes: Sizes, voice: Tensor) -> Tensor:
    if bool((voice == 0).all()):
        null = ckpt["backbone.speaker_embedding.null_token"]
        return (
            affine_norm(ckpt, "speaker_embedding.out_norm", null, sizes.speaker_eps)
            if sizes.null_token_normed
            else null
        )
    x = linear(
        ckpt,
        "speaker_embedding.net.1",
        affine_norm(ckpt, "speaker_embedding.net.0", voice, sizes.speaker_eps),
    )
    return affine_norm(
        ckpt,
        "speaker_embedding.out_norm",
        linear(ckpt, "speaker_embedding.net.3", F.silu(x)),
        sizes.speaker_eps,
    )


def context_of(
    ckpt: Ckpt, sizes: Sizes, hidden: Tensor, voices: Tensor, places: Tensor, context_length: int
) -> Tensor:
    """[valid, text_width] hidden states -> [context_length, width] with the timbre tokens in their places."""
    assert len(hidden) <= context_length, "the text does not fit in the context"
    padded = torch.cat([hidden, torch.zeros(context_length - len(hidden), sizes.text_width)])
    rows = list(two_linears(ckpt, "text_embedding", padded))
    for voice, place in zip(voices, places.tolist(), strict=True):
        if place >= 0:
            rows[place] = speaker_token(ckpt, sizes, voice)
    return torch.stack(rows)


def run_block(
    ckpt: Ckpt,
    sizes: Sizes,
    block: str,
    streams: list[Stream],
    context: Tensor | None,
    joined: bool,
    suffix: Suffix,
) -> None:
    """One block, in place. An alignment block has weights per modality; a fusion block has one set for every
    token."""
    two_sets = block.startswith("double_blocks")
    mods, qkv = [], []

    def project(stream: Stream, module: str, leaf: str, x: Tensor) -> Tensor:
        of_audio = two_sets and stream.of_audio
        y = linear(ckpt, attention_key(block, module, leaf, of_audio, suffix), x)
        if leaf in "vo":
            return y
        y = y / torch.sqrt((y * y).mean(-1, keepdim=True) + sizes.eps)  # over the whole width, not per head
        return y * ckpt[f"backbone.{attention_key(block, module, f'norm_{leaf}', of_audio, suffix)}.weight"]

    for stream in streams:  # modulation: shift1, scale1, gate1, shift2, scale2, gate2
        mod = (
            ckpt[f"backbone.{block}.modulation{'_audio' if two_sets and stream.of_audio else ''}.modulation"]
            + stream.shifts
        )
        x = normalise(stream.x, sizes.eps) * (1.0 + mod[:, 1]) + mod[:, 0]
        mods.append(mod)
        qkv.append([project(stream, "self_attn", leaf, x) for leaf in "qkv"])
    for i, stream in enumerate(streams):
        seen = range(len(streams)) if joined else [i]
        keys, values = (torch.cat([qkv[j][part] for j in seen]) for part in (1, 2))
        mixed = attend(
            qkv[i][0],
            keys,
            values,
            sizes.num_heads,
            stream.angles,
            torch.cat([streams[j].angles for j in seen]),
        )
        stream.x = stream.x + mods[i][:, 2] * project(stream, "self_attn", "o", mixed)
    for stream, mod in zip(streams, mods, strict=True):
        own = "_audio" if two_sets and stream.of_audio and sizes.split_norm_ffn else ""
        if context is not None:
            q = project(
                stream, "cross_attn", "q", affine_norm(ckpt, f"{block}.norm3{own}", stream.x, sizes.eps)
            )
            k, v = (project(stream, "cross_attn", leaf, context) for leaf in "kv")
            stream.x = stream.x + project(stream, "cross_attn", "o", attend(q, k, v, sizes.num_heads))
        x = normalise(stream.x, sizes.eps) * (1.0 + mod[:, 4]) + mod[:, 3]
        stream.x = stream.x + mod[:, 5] * two_linears(ckpt, f"{block}.ffn{own}", x)


def run_head(ckpt: Ckpt, sizes: Sizes, stream: Stream) -> Tensor:
    """The velocity in latent layout; a video token's features are (p_t = 1, p_h, p_w, channel)."""
    name = "head_audio" if stream.of_audio else "head"
    shift, scale = (row + stream.time for row in ckpt[f"backbone.{name}.modulation"][0])
    features = linear(ckpt, f"{name}.head", normalise(stream.x, sizes.eps) * (1.0 + scale) + shift)
    if stream.of_audio:
        return features.T
    frames, rows, columns = stream.grid
    cells = features.reshape(frames, rows, columns, PATCH, PATCH, sizes.video_channels)
    return cells.permute(5, 0, 1, 3, 2, 4).reshape(
        sizes.video_channels, frames, rows * PATCH, columns * PATCH
    )


def forward(
    ckpt: Ckpt,
    sizes: Sizes,
    *,
    video: Tensor | None = None,
    audio: Tensor | None = None,
    video_rate_hz: float = 6.0,
    audio_rate_hz: float = 25.0,
    video_levels: Tensor | None = None,
    audio_levels: Tensor | None = None,
    text: Tensor,
    text_lengths: Tensor,
    speakers: Tensor,
    speaker_positions: Tensor,
    joined: Tensor,
    text_kept: Tensor | None = None,
    attend_text_padding: bool = True,
    context_length: int = 512,
    audio_suffix: Suffix = "leaf",
    audio_start: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """The velocities [B,48,F,H,W] and [B,128,L], each None where its modality is. `audio_start` moves every
    audio position (tests only)."""
    ckpt = {name: value.float() for name, value in ckpt.items()}
    out_video, out_audio = [], []
    for b in range(len(text)):
        streams = []
        if video is not None:
            assert video_levels is not None
            streams.append(video_stream(ckpt, sizes, video[b].float(), video_levels[b]))
        if audio is not None:
            assert audio_levels is not None
            clock = (torch.arange(audio.shape[2]).double() + audio_start) * (video_rate_hz / audio_rate_hz)
            streams.append(audio_stream(ckpt, sizes, audio[b].float(), audio_levels[b], clock))
        length = int(text_lengths[b])
        context = context_of(
            ckpt, sizes, text[b, :length].float(), speakers[b].float(), speaker_positions[b], context_length
        )
        seen = context if attend_text_padding else context[:length]
        dropped = len(seen) == 0 or (text_kept is not None and not text_kept[b])
        for block in block_names(sizes):
            run_block(ckpt, sizes, block, streams, None if dropped else seen, bool(joined[b]), audio_suffix)
        for stream in streams:
            (out_audio if stream.of_audio else out_video).append(run_head(ckpt, sizes, stream))
    return (torch.stack(out_video) if out_video else None), (torch.stack(out_audio) if out_audio else None)
