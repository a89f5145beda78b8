"""What all paradigms share: latents and text become tokens, levels become modulation, tokens become velocities.

What lies between (which token meets which, and where) is a subclass's `mix`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.blocks import Head
from pretrain.model.clean_answer import velocity_of_answer
from pretrain.model.embedders import AudioEmbedder, TextEmbedder, VideoEmbedder
from pretrain.model.modulation import StreamModulation, TimePath
from pretrain.model.rope import audio_angles, turns_of, video_angles
from pretrain.model.timbre import TimbreToken, place_timbre_tokens
from pretrain.types import Conditioning, Stream, Velocity

Pair = tuple[Tensor | None, Tensor | None]  # (video, audio); None = absent


class Inputs(NamedTuple):
    """What a paradigm mixes; of each pair, None where the modality is absent."""

    tokens: Pair  # [B, N, width] each
    valid: Pair  # [B, N] bool each, False = padding; None also where nothing is padded
    turns: Pair  # complex [N, 1, head_dim // 2] each
    modulations: tuple[StreamModulation | None, ...]  # video, audio, and whatever else a paradigm modulates
    context: Tensor  # [B, S, width] text with timbre tokens in their places
    conditioning: Conditioning

    @property
    def counts(self) -> tuple[int, int]:
        """Video and audio tokens of a sample."""
        video, audio = (0 if x is None else x.shape[1] for x in self.tokens)
        return video, audio


class AVTransformer(nn.Module):
    """`forward(video, audio, conditioning) -> Velocity`; either stream may be absent.

    A paradigm gives `add_blocks`, `block_groups` and `mix`.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.video_embedder, self.audio_embedder = VideoEmbedder(args), AudioEmbedder(args)
        self.text_embedder, self.timbre_token = TextEmbedder(args), TimbreToken(args)
        self.time = TimePath(args)
        self.add_blocks(args)
        self.head = Head(args, args.video_channels * args.patch_size**2)
        self.head_audio = Head(args, args.audio_channels)

    def add_blocks(self, args: ModelArgs) -> None:
        """Create the paradigm's blocks."""
        raise NotImplementedError

    def block_groups(self) -> tuple[nn.ModuleList, ...]:
        """Lists of the blocks that are checkpointed, compiled and sharded one by one."""
        raise NotImplementedError

    def mix(self, given: Inputs) -> Pair:
        """Tokens through all blocks; same shapes."""
        raise NotImplementedError

    def forward(self, video: Stream | None, audio: Stream | None, conditioning: Conditioning) -> Velocity:
        """Velocities shaped like the latents, fp32. Raises ValueError where both streams are absent."""
        if video is None and audio is None:
            raise ValueError("forward needs video, audio or both; got neither")
        modulations = self.modulations(video, audio)
        tokens = self._embed(video, audio)
        given = Inputs(
            tokens, self._valid(video, audio, tokens), self._turns(video, audio), modulations, self._context(conditioning), conditioning
        )
        video_tokens, audio_tokens = self.mix(given)
        answers: list[Tensor | None] = [None, None]
        if video and video_tokens is not None and modulations[0]:
            answers[0] = self._unpatch(self.head(video_tokens, modulations[0].head), video)
        if audio and audio_tokens is not None and modulations[1]:
            answers[1] = self.head_audio(audio_tokens, modulations[1].head).transpose(1, 2)
        return Velocity(
            video=velocity_of_answer(answers[0], video, self.args.open_deviation_video),
            audio=velocity_of_answer(answers[1], audio, self.args.open_deviation_audio),
        )

    def modulations(self, video: Stream | None, audio: Stream | None) -> tuple[StreamModulation | None, ...]:
        """Modulation of video and audio; a paradigm may append others."""
        return self.time(video.sigma if video else None, audio.sigma if audio else None)[:2]

    def _embed(self, video: Stream | None, audio: Stream | None) -> Pair:
        audio_tokens = self.audio_embedder(audio.latents, _valid(audio, audio.latents.shape[2])) if audio else None
        return (self.video_embedder(video.latents) if video else None), audio_tokens

    def _valid(self, video: Stream | None, audio: Stream | None, tokens: Pair) -> Pair:
        frames = valid = None
        if video and tokens[0] is not None:
            size = video.latents.shape[2]
            frames = _valid(video, size)
            frames = None if frames is None else frames.repeat_interleave(tokens[0].shape[1] // size, dim=1)
        if audio:
            valid = _valid(audio, audio.latents.shape[2])
        return frames, valid

    def _turns(self, video: Stream | None, audio: Stream | None) -> Pair:
        """Rotary turns of both streams on the video's clock, also where audio is alone."""
        dims, theta, patch = self.args.head_dim, self.args.rope_theta, self.args.patch_size
        out: list[Tensor | None] = [None, None]
        if video:
            _, _, frames, rows, columns = video.latents.shape
            out[0] = turns_of(video_angles(frames, rows // patch, columns // patch, dims, theta, video.latents.device))
        if audio:
            ratio = audio.clock_hz / audio.rate_hz
            out[1] = turns_of(audio_angles(audio.latents.shape[2], ratio, dims, theta, audio.latents.device))
        return out[0], out[1]

    def _context(self, conditioning: Conditioning) -> Tensor:
        """Text states with the timbre tokens in their places, [B, S, width]."""
        tokens, voices = self.text_embedder(conditioning.text), self.timbre_token(conditioning.speakers)
        return place_timbre_tokens(tokens, voices, conditioning.speaker_positions, self.args.timbre_keeps_text)

    def _unpatch(self, x: Tensor, video: Stream) -> Tensor:
        """[B, F * h * w, p * p * C] -> [B, C, F, H, W]; features are ordered (row, column, channel)."""
        batch, channels, frames, rows, columns = video.latents.shape
        patch = self.args.patch_size
        cells = x.reshape(batch, frames, rows // patch, columns // patch, patch, patch, channels)
        return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, channels, frames, rows, columns)

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        """Xavier-uniform maps, zero biases, N(0, 0.02) text and time embeddings at width 3072, zero heads (release).

        At other widths the embeddings' deviation is scaled so that context and levels come out as loud as at 3072.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv3d)):
                fan_in, fan_out = module.weight[0].numel(), module.weight.shape[0]
                bound = (6 / (fan_in + fan_out)) ** 0.5
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                module.reset_parameters()
        for linear in (self.text_embedder[0], self.text_embedder[2], self.time.embedding[0], self.time.embedding[2]):
            nn.init.normal_(linear.get_parameter("weight"), std=0.02 * (3072 / self.args.width) ** 0.5)
        for table in self.time.tables.values():
            nn.init.normal_(table, std=self.args.width**-0.5)
        nn.init.normal_(self.timbre_token.null_token, std=0.02)
        for head in (self.head, self.head_audio):
            nn.init.zeros_(head.linear.weight)


def _valid(stream: Stream, size: int) -> Tensor | None:
    """[B, size] True where not padding; None where nothing is padded."""
    if bool((stream.lengths == size).all()):
        return None
    return torch.arange(size, device=stream.lengths.device) < stream.lengths[:, None]
