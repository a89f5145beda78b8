"""Voice encoder of Seed-TTS' SIM: WavLM-large fine-tuned for speaker verification, with a small ECAPA-TDNN.

Source: microsoft/UniSpeech, downstreams/speaker_verification (CC BY-SA 3.0; WavLM itself MIT). Weights are
loaded by name: every tensor is used, ignored for a stated reason, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.parking import parked
from rewards.timbre.ecapa import EcapaTdnn
from rewards.timbre.encoder import EmbeddingCache, by_length
from rewards.timbre.loading import fitted, read_weights
from rewards.timbre.silence import without_silence
from rewards.weights import checked

# Digest as listed by two mirrors of the file, huggingface.co/bezzam/wavlm_large_finetune_seed_tts_eval and
# lmzjms/wavlm-large.
PUBLISHED_SHA256 = "51f07e3b94d9e0262a6a675ef5a087be3dd09e8c62e9d886827f44f82fe7f94b"
SOURCE = "wavlm_large_finetune.pth of microsoft/UniSpeech, downstreams/speaker_verification"
BACKBONE = "feature_extract.model."
IGNORED = {
    r"loss_calculator\..*": "the speakers of the training set",
    r"feature_extract\.model\.mask_emb": "stands for masked time steps in pretraining",
    r"feature_extract\.model\.(final_proj\..*|label_embs_concat)": "pretraining's targets",
}
# unilm's WavLM -> transformers' WavLMModel
RENAMED = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"(encoder\.layers\.\d+)\.self_attn\.grep_linear\.", r"\1.attention.gru_rel_pos_linear."),
    (r"(encoder\.layers\.\d+)\.self_attn\.grep_a$", r"\1.attention.gru_rel_pos_const"),
    (r"(encoder\.layers\.\d+)\.self_attn\.relative_attention_bias\.", r"\1.attention.rel_attn_embed."),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
)


@dataclass(frozen=True)
class WavlmEcapaArgs:
    """Shapes; the defaults are the published model's (WavLM-large)."""

    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    feed_forward: int = 4096
    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    position_kernel: int = 128
    position_groups: int = 16
    buckets: int = 320
    max_distance: int = 800
    ecapa_channels: int = 512
    pooled: int = 1536
    bottleneck: int = 128
    embedding: int = 256


class WavlmEcapa(nn.Module):
    """16 kHz sound [B, N], all of one length -> voice [B, D], not yet of unit length."""

    def __init__(self, args: WavlmEcapaArgs = WavlmEcapaArgs()) -> None:
        super().__init__()
        self.backbone = _backbone(args)
        self.feature_weight = nn.Parameter(torch.zeros(args.layers + 1))
        self.head = EcapaTdnn(args.hidden, args.ecapa_channels, args.pooled, args.bottleneck, args.embedding)

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.head(self.features(waveforms))

    def features(self, waveforms: Tensor) -> Tensor:
        """Weighted sum of all layers' inputs and the last output, [B, hidden, T] at 50 frames per second."""
        normal = functional.layer_norm(waveforms, waveforms.shape[1:])
        output = self.backbone(normal, output_hidden_states=True)
        # transformers 5 collects the last layer's output before the closing layer norm; the benchmark's is
        # after it
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        weights = torch.softmax(self.feature_weight, dim=0)
        return (
            torch.stack([weight * state for weight, state in zip(weights, states, strict=True)])
            .sum(dim=0)
            .transpose(1, 2)
            + 1e-6
        )


class WavlmEcapaEncoder:
    """`VoiceEncoder` from a file of the published format. Same-speaker cosines lie near 0.5, others near 0
    (UniSpeech README).

    `is_seed_tts` is true only for the published file (by its sha256): only then may the metric be called
    `sim`. Sounds of one length share a pass and nothing is padded, as in the benchmark. Resampling is
    scipy's, not torchaudio's. Raises FileNotFoundError or ValueError in one line for a missing, altered or
    foreign file.
    """

    name = "wavlm_ecapa"

    def __init__(
        self,
        path: Path,
        sha256: str = "",
        *,
        args: WavlmEcapaArgs | None = None,
        device: str = "cpu",
        park: bool = False,
    ) -> None:
        path = checked(path, sha256, what="WavLM-ECAPA", licence="CC BY-SA 3.0", source=SOURCE)
        self.is_seed_tts = sha256.lower() == PUBLISHED_SHA256
        self._net, self._device = load_net(path, args or WavlmEcapaArgs()), device
        self._parking = parked(self._net, device, park)
        self._cached = EmbeddingCache(self._embed, self._net.head.linear.out_features)

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """16 kHz mono sounds [N] -> float32 [B, 256] of unit length; remembered by content.

        Long silence is taken out first (`silence.without_silence`), but for the published file, whose
        benchmark embeds sounds at full length.
        """
        return self._cached(waveforms)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        sounds = waveforms if self.is_seed_tts else [without_silence(sound) for sound in waveforms]
        with self._parking.working():
            return by_length(self._net, sounds, self._device)


def load_net(path: Path, args: WavlmEcapaArgs) -> WavlmEcapa:
    """The network in evaluation mode. Raises ValueError in one line for a file without `model` or with other
    tensors."""
    content = read_weights(path)
    if not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: has {sorted(content)[:5]}, no dict 'model'; it is not {SOURCE}")
    with torch.device("meta"):
        net = WavlmEcapa(args)
    net.load_state_dict(fitted(to_ours(content["model"]), net.state_dict(), str(path)), assign=True)
    return net.eval().requires_grad_(False).float()


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors renamed to ours, without the IGNORED ones; unknown names are kept."""
    kept = {
        name: value
        for name, value in state.items()
        if not any(re.fullmatch(pattern, name) for pattern in IGNORED)
    }
    return {_our_name(name): value for name, value in kept.items()}


def _our_name(name: str) -> str:
    if not name.startswith(BACKBONE):
        return name if name == "feature_weight" else f"head.{name}"
    inner = name.removeprefix(BACKBONE)
    for pattern, replacement in RENAMED:
        if match := re.match(pattern, inner):
            return "backbone." + match.expand(replacement) + inner[match.end() :]
    return f"backbone.{inner}"


def _backbone(args: WavlmEcapaArgs) -> nn.Module:
    from transformers import WavLMConfig, WavLMModel  # slow to import

    return WavLMModel(
        WavLMConfig(
            hidden_size=args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            intermediate_size=args.feed_forward,
            do_stable_layer_norm=True,
            feat_extract_norm="layer",
            conv_bias=False,
            conv_dim=list(args.conv_channels),
            conv_kernel=list(args.conv_kernels),
            conv_stride=list(args.conv_strides),
            num_conv_pos_embeddings=args.position_kernel,
            num_conv_pos_embedding_groups=args.position_groups,
            num_buckets=args.buckets,
            max_bucket_distance=args.max_distance,
            apply_spec_augment=False,
            mask_time_prob=0.0,
        )
    )
