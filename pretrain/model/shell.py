"""Common parts of all paradigms: embedding to tokens, sigmas to modulation, heads to velocities.

The blocks between, and their attention pattern, are a subclass's `mix`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.blocks import Head
from pretrain.model.context_parallel import ContextGroup, Share, check_degree
from pretrain.model.embedders import AudioEmbedder, TextEmbedder, VideoEmbedder
from pretrain.model.feature_cache import PassFeatures
from pretrain.model.initial import first_values
from pretrain.model.modulation import StreamModulation, TimePath
from pretrain.model.rope import audio_angles, freqs_cis_of, video_freqs_cis
from pretrain.model.timbre import TimbreToken, place_timbre_tokens
from pretrain.types import Conditioning, Stream, Velocity, sent

CONTEXT_TOKENS = 512  # text length of the published weights (nava.md, section 2)
StreamPair = tuple[Tensor | None, Tensor | None]  # (video, audio); None = absent


class Inputs(NamedTuple):
    """What a paradigm mixes; of each pair, None where the modality is absent."""

    tokens: StreamPair  # [B, N, width] each
    # [B, N] bool each over whole samples, False = padding; None also where nothing is padded
    valid: StreamPair
    freqs_cis: StreamPair  # complex [N, 1, head_dim // 2] each
    modulations: tuple[StreamModulation | None, ...]  # video, audio, and whatever else a paradigm modulates
    context: Tensor  # [B, S, width] text with timbre tokens in their places
    conditioning: Conditioning
    share: Share | None  # where tokens and freqs_cis are this rank's part of the samples

    @property
    def counts(self) -> tuple[int, int]:
        """Video and audio tokens of a sample here."""
        video, audio = (0 if x is None else x.shape[1] for x in self.tokens)
        return video, audio


class AVTransformer(nn.Module):
    """`forward(video, audio, conditioning) -> Velocity`; either stream may be absent.

    A paradigm gives `add_blocks`, `block_groups` and `mix`. `join_context_group` lets ranks hold the tokens
    of a batch together.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.context_group: ContextGroup | None = None
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

    def mix(self, inputs: Inputs) -> StreamPair:
        """Tokens through all blocks; same shapes."""
        raise NotImplementedError

    def forward(
        self,
        video: Stream | None,
        audio: Stream | None,
        conditioning: Conditioning,
        features: PassFeatures | None = None,
    ) -> Velocity:
        """Velocities shaped like the latents, fp32. Raises ValueError where both streams are absent.

        features: of this pass in a sampling with a cache; the blocks are left out where it reuses them.
        """
        if video is None and audio is None:
            raise ValueError("forward needs video, audio or both; got neither")
        share = self._share(video, audio)
        modulations = self.modulations(
            video, replace(audio, sigma=_own_sigmas(audio.sigma, share)) if audio else None
        )
        tokens = self._embed(video, audio, share)
        if features is not None and features.reusing:
            video_tokens, audio_tokens = features.added_to(tokens)
        else:
            conditioning = self._without_dropped_text(conditioning)
            inputs = Inputs(
                tokens,
                self._valid(video, audio),
                self._freqs_cis(video, audio, share),
                modulations,
                self._context(conditioning),
                conditioning,
                share,
            )
            video_tokens, audio_tokens = self.mix(inputs)
            if features is not None:
                features.keep(tokens, (video_tokens, audio_tokens))
        answers: list[Tensor | None] = [None, None]
        if video and video_tokens is not None and modulations[0]:
            features = self.head(video_tokens, modulations[0].head)
            answers[0] = self._unpatch(share.whole_video(features) if share else features, video)
        if audio and audio_tokens is not None and modulations[1]:
            features = self.head_audio(audio_tokens, modulations[1].head)
            answers[1] = (share.whole_audio(features) if share else features).transpose(1, 2)
        return Velocity(
            video=velocity_of_answer(answers[0], video, self.args.open_deviation_video),
            audio=velocity_of_answer(answers[1], audio, self.args.open_deviation_audio),
        )

    def join_context_group(self, group: ContextGroup | None) -> None:
        """Hold a part of every batch's tokens from here on. Raises ValueError if the model does not split."""
        if group:
            check_degree(self.args, group.size)
        self.context_group = group

    def modulations(self, video: Stream | None, audio: Stream | None) -> tuple[StreamModulation | None, ...]:
        """Modulation of video and audio; a paradigm may append others."""
        return self.time(video.sigma if video else None, audio.sigma if audio else None)[:2]

    def _share(self, video: Stream | None, audio: Stream | None) -> Share | None:
        if self.context_group is None:
            return None
        frames, rows, columns = self._grid(video) if video else (0, 0, 0)
        return Share(self.context_group, frames, rows, columns, audio.latents.shape[2] if audio else 0)

    def _grid(self, video: Stream) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens."""
        frames, rows, columns = video.latents.shape[2:]
        return frames, rows // self.args.patch_size, columns // self.args.patch_size

    def _embed(self, video: Stream | None, audio: Stream | None, share: Share | None) -> StreamPair:
        tokens = self.video_embedder(video.latents) if video else None
        audio_tokens = (
            self.audio_embedder(audio.latents, _valid(audio, audio.latents.shape[2])) if audio else None
        )
        return _own((tokens, audio_tokens), share, dim=1)

    def _valid(self, video: Stream | None, audio: Stream | None) -> StreamPair:
        frames = None
        if video and (frames := _valid(video, video.latents.shape[2])) is not None:
            _, rows, columns = self._grid(video)
            frames = frames.repeat_interleave(rows * columns, dim=1)
        return frames, _valid(audio, audio.latents.shape[2]) if audio else None

    def _freqs_cis(
        self, video: Stream | None, audio: Stream | None, share: Share | None = None
    ) -> StreamPair:
        """freqs_cis of both streams on the video's time axis, also for audio alone."""
        dims, theta = self.args.head_dim, self.args.rope_theta
        out: list[Tensor | None] = [None, None]
        if video:
            out[0] = video_freqs_cis(*self._grid(video), dims, theta, video.latents.device)
        if audio:
            ratio = audio.video_rate_hz / audio.rate_hz if self.args.rate_aware_rope else 1.0
            out[1] = freqs_cis_of(
                audio_angles(audio.latents.shape[2], ratio, dims, theta, audio.latents.device)
            )
        return _own((out[0], out[1]), share, dim=0)

    def _without_dropped_text(self, conditioning: Conditioning) -> Conditioning:
        """Dropped texts as zero rows without timbre tokens if trained so; else unchanged."""
        if not self.args.dropped_text_is_zeros or conditioning.all_kept:
            return conditioning
        return conditioning.zeros_for_dropped_text

    def _context(self, conditioning: Conditioning) -> Tensor:
        """Text states with the timbre tokens in their places, [B, S, width]."""
        text = pad_text(conditioning.text) if self.args.attend_text_padding else conditioning.text
        tokens, voices = self.text_embedder(text), self.timbre_token(conditioning.speakers)
        return place_timbre_tokens(
            tokens, voices, conditioning.speaker_positions, self.args.timbre_keeps_text
        )

    def _unpatch(self, x: Tensor, video: Stream) -> Tensor:
        """[B, F * h * w, p * p * C] -> [B, C, F, H, W]; features are ordered (row, column, channel)."""
        batch, channels, frames, rows, columns = video.latents.shape
        patch = self.args.patch_size
        cells = x.reshape(batch, frames, rows // patch, columns // patch, patch, patch, channels)
        return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, channels, frames, rows, columns)

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        """Draw all first values (pretrain.model.initial) in place."""
        for first in first_values(self, self.args.width):
            first.draw(self.get_parameter(first.name))


def pad_text(states: Tensor) -> Tensor:
    """[B, S, D] -> [B, 512, D], zero-padded: the release pads before the embedding."""
    missing = CONTEXT_TOKENS - states.shape[1]
    if missing < 0:
        raise ValueError(
            f"the text has {states.shape[1]} tokens; a model that attends to its padding takes "
            f"{CONTEXT_TOKENS}, shorten it"
        )
    return nn.functional.pad(states, (0, 0, 0, missing))


def _valid(stream: Stream, size: int) -> Tensor | None:
    """[B, size] True where not padding; None where nothing is padded."""
    if not stream.padded:
        return None
    inside = torch.arange(size, device=stream.lengths.device) < stream.lengths[:, None]
    return sent(inside, stream.latents.device)  # lengths may be on the host


def _own(pair: StreamPair, share: Share | None, dim: int) -> StreamPair:
    """This rank's part of whole (video, audio) tokens along dim."""
    if share is None:
        return pair
    video, audio = pair
    return None if video is None else share.own_video(video, dim), None if audio is None else share.own_audio(
        audio, dim
    )


def _own_sigmas(sigma: Tensor, share: Share | None) -> Tensor:
    """This rank's part of the audio's sigmas [B, G], where there is one per token."""
    return sigma if share is None or sigma.shape[1] == 1 else share.own_audio(sigma, 1)


def velocity_of_answer(
    answer: Tensor | None, stream: Stream | None, deviation: float | None
) -> Tensor | None:
    """A head's output as a velocity."""
    if answer is None or stream is None or deviation is None:
        return answer
    sigma = stream.sigma.unflatten(1, (1, -1, *[1] * (answer.ndim - 3)))
    return velocity_of_clean(answer, stream.latents, sigma, deviation)


def velocity_of_clean(answer: Tensor, latents: Tensor, sigma: Tensor, deviation: float) -> Tensor:
    """(x_s - x0) / s for x0 = skip * x_s + out * answer, finite at s = 0.

    skip and out are those of EDM (Karras et al. 2022, section 5) for data of standard deviation `deviation` d
    on the path x_s = (1 - s) x0 + s eps, with out scaled to 1 at s = 1: skip = d^2 (1 - s) / w, out = s /
    sqrt(w), w = s^2 + d^2 (1 - s)^2.
    """
    variance = deviation**2
    weight = sigma**2 + variance * (1 - sigma) ** 2
    return latents * (sigma - variance * (1 - sigma)) / weight - answer * weight.rsqrt()
