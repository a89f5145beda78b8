"""NAVA: one flow-matching transformer over video and audio latents, with an external context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model.args import ModelArgs
from pretrain.model.attention import AttentionPlan, plan_attention
from pretrain.model.blocks import AlignmentBlock, Context, FusionBlock, Head
from pretrain.model.embedders import AudioEmbedder, TextEmbedder, VideoEmbedder
from pretrain.model.modulation import TimePath
from pretrain.model.rope import audio_angles, turns_of, video_angles
from pretrain.model.timbre import TimbreToken, place_timbre_tokens
from pretrain.types import Conditioning, Stream, Velocity


class NavaTransformer(nn.Module):
    """Align-then-Fuse MMDiT (paper section 3): `forward(video, audio, conditioning) -> Velocity`; either stream may be absent."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.video_embedder, self.audio_embedder = VideoEmbedder(args), AudioEmbedder(args)
        self.text_embedder, self.timbre_token = TextEmbedder(args), TimbreToken(args)
        self.time = TimePath(args)
        self.double_blocks = nn.ModuleList(AlignmentBlock(args) for _ in range(args.num_alignment_blocks))
        self.single_blocks = nn.ModuleList(FusionBlock(args) for _ in range(args.num_fusion_blocks))
        self.head = Head(args, args.video_channels * args.patch_size**2)
        self.head_audio = Head(args, args.audio_channels)

    def forward(self, video: Stream | None, audio: Stream | None, conditioning: Conditioning) -> Velocity:
        """Velocities shaped like the latents, fp32. Raises ValueError where both streams are absent."""
        if video is None and audio is None:
            raise ValueError("forward needs video, audio or both; got neither")
        tokens = self._embed(video, audio)
        plan = self._plan(video, audio, tokens, conditioning.modalities_joined)
        turns = self._turns(video, audio)
        context = self._context(conditioning)
        modulations = self.time(video.sigma if video else None, audio.sigma if audio else None)
        for index, block in enumerate(self.double_blocks):
            picked = tuple(m.alignment[index] if m else None for m in modulations)
            tokens = block(tokens, picked, turns, plan, context)
        joint = torch.cat([x for x in tokens if x is not None], dim=1)
        joint_turns = torch.cat([part for part in turns if part is not None])
        for index, block in enumerate(self.single_blocks):
            joint = block(joint, tuple(m.fusion[index] for m in modulations if m), joint_turns, plan, context)
        video_tokens, audio_tokens = joint.split((plan.num_video, plan.num_audio), dim=1)
        answers = (
            self._unpatch(self.head(video_tokens, modulations[0].head), video) if video else None,
            self.head_audio(audio_tokens, modulations[1].head).transpose(1, 2) if audio else None,
        )
        return Velocity(
            video=_velocity(answers[0], video, self.args.open_deviation_video),
            audio=_velocity(answers[1], audio, self.args.open_deviation_audio),
        )

    def _embed(self, video: Stream | None, audio: Stream | None) -> tuple[Tensor | None, Tensor | None]:
        audio_tokens = self.audio_embedder(audio.latents, _valid(audio, audio.latents.shape[2])) if audio else None
        return (self.video_embedder(video.latents) if video else None), audio_tokens

    def _plan(
        self, video: Stream | None, audio: Stream | None, tokens: tuple[Tensor | None, Tensor | None], joined: Tensor
    ) -> AttentionPlan:
        counts = [0 if x is None else x.shape[1] for x in tokens]
        masks: list[Tensor | None] = []
        if video:
            frames = video.latents.shape[2]
            valid = _valid(video, frames)
            masks.append(valid if valid is None else valid.repeat_interleave(counts[0] // frames, dim=1))
        if audio:
            masks.append(_valid(audio, counts[1]))
        valid = None
        if any(mask is not None for mask in masks):
            sizes = [count for count in counts if count]
            valid = torch.cat([joined.new_ones(len(joined), n) if m is None else m for m, n in zip(masks, sizes, strict=True)], dim=1)
        return plan_attention(valid, joined, *counts)

    def _turns(self, video: Stream | None, audio: Stream | None) -> tuple[Tensor | None, Tensor | None]:
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

    def _context(self, conditioning: Conditioning) -> Context:
        tokens = self.text_embedder(conditioning.text)
        voices = self.timbre_token(conditioning.speakers)
        tokens = place_timbre_tokens(tokens, voices, conditioning.speaker_positions, self.args.timbre_keeps_text)
        kept = conditioning.text_kept
        mask = None
        if not self.args.attend_text_padding and not bool(conditioning.text_mask.all()):
            mask = (conditioning.text_mask | ~kept[:, None])[:, None, None]  # a dropped text may be empty: softmax stays finite
        return Context(tokens, mask, None if bool(kept.all()) else kept[:, None, None].to(tokens.dtype))

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


def _velocity(answer: Tensor | None, stream: Stream | None, deviation: float | None) -> Tensor | None:
    """A head's answer as a velocity."""
    if answer is None or stream is None or deviation is None:
        return answer
    sigma = stream.sigma.unflatten(1, (1, -1, *[1] * (answer.ndim - 3)))
    return velocity_of_clean(answer, stream.latents, sigma, deviation)


def velocity_of_clean(answer: Tensor, latents: Tensor, sigma: Tensor, deviation: float) -> Tensor:
    """(x_s - x0) / s for x0 = skip * x_s + out * answer, finite at s = 0.

    skip and out are those of EDM (Karras et al. 2022, section 5) for data of standard deviation `deviation` d on the path
    x_s = (1 - s) x0 + s eps, with out scaled to 1 at s = 1: skip = d^2 (1 - s) / w, out = s / sqrt(w), w = s^2 + d^2 (1 - s)^2.
    """
    variance = deviation**2
    weight = sigma**2 + variance * (1 - sigma) ** 2
    return latents * (sigma - variance * (1 - sigma)) / weight - answer * weight.rsqrt()


def _valid(stream: Stream, size: int) -> Tensor | None:
    """[B, size] True where not padding; None where nothing is padded."""
    if bool((stream.lengths == size).all()):
        return None
    return torch.arange(size, device=stream.lengths.device) < stream.lengths[:, None]
