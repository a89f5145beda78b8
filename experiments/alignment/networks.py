"""What decoding and each published reward cost for one clip, counted on networks that hold no weights.

Each network is built in its published size on the meta device and called once, as its codec or reward calls
it. What runs on the host is not seen: face detection, resampling, spectra, decoding of tokens to text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.memory_meter import MemoryMeter
from pretrain.types import PIXELS_PER_LATENT, VIDEO_CHANNELS, num_audio_tokens, num_video_latents

SAMPLE_RATE_HZ = 16_000
WINDOW_S = 30  # of Whisper's encoder, whatever the clip's length
AESTHETICS_WINDOW_S = 10
CLAP_WINDOWS, CLAP_FRAMES = 4, 1001  # mel spectra of 10 s: three crops and the whole
SYNC_FPS, SYNC_WINDOW = 25, 5  # frames
TOKENS_PER_S = 4.0  # that a recogniser writes: 3 words a second, 1.3 tokens each
TEXT_TOKENS = 77  # of CLAP
STEADY = 5  # latent frames of the video VAE: each one after them costs as much as the last of them
WAN: dict[str, Any] = {  # Wan2.2-TI2V-5B's vae/config.json
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": VIDEO_CHANNELS,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": PIXELS_PER_LATENT,
}
WHISPER: dict[str, Any] = {  # whisper-large-v3
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "vocab_size": 51866,
}


@dataclass(frozen=True)
class ClipMedia:
    """Length and size of a clip, of which only its length counts for the sound."""

    frames: int
    height: int
    width: int
    fps: float

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class NetworkCost:
    """parameters: how many; weights: their bytes; peak: bytes beside them while one clip is scored; flops: of
    that clip, matmuls and convolutions; half: computed in bf16, else in fp32."""

    parameters: int
    weights: int
    peak: int
    flops: int
    half: bool


def network_cost(network: nn.Module, call: Callable[[], object]) -> NetworkCost:
    """Of `call`, which runs a network on the meta device."""
    held = [*network.parameters(), *network.buffers()]
    weights = sum(tensor.nbytes for tensor in held)
    with torch.no_grad(), MemoryMeter(held, meta=True) as meter, FlopCounterMode(display=False) as counter:
        call()
    return NetworkCost(
        sum(parameter.numel() for parameter in network.parameters()),
        weights,
        meter.peak - weights,
        counter.get_total_flops(),
        next(network.parameters()).dtype == torch.bfloat16,
    )


def video_decode_cost(media: ClipMedia) -> NetworkCost:
    """Wan2.2's VAE, frame group by frame group, and the picture in fp32.

    Every latent frame after the first few costs the same, so that two short clips tell of a long one.
    """
    return _decode_cost(num_video_latents(media.frames), media.height // 16, media.width // 16)


def _decode_cost(latents: int, rows: int, columns: int) -> NetworkCost:
    if latents <= STEADY:
        return _counted_decode(latents, rows, columns)
    less, more = (_counted_decode(count, rows, columns) for count in (STEADY - 1, STEADY))
    further = latents - STEADY
    return replace(
        more,
        flops=more.flops + further * (more.flops - less.flops),
        peak=more.peak + further * (more.peak - less.peak),
    )


@lru_cache
def _counted_decode(latents: int, rows: int, columns: int) -> NetworkCost:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    with torch.device("meta"):
        network: Any = AutoencoderKLWan(**WAN).eval()
        network.bfloat16()
        given = torch.empty(1, VIDEO_CHANNELS, latents, rows, columns, dtype=torch.bfloat16)
    return network_cost(network, lambda: network.decode(given).sample.float())


@lru_cache
def audio_decode_cost(media: ClipMedia) -> NetworkCost:
    """LTX-2's audio VAE and vocoder, in diffusers' own sizes."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    with torch.device("meta"):
        vae: Any = AutoencoderKLLTX2Audio().eval()
        vocoder: Any = LTX2Vocoder().eval()
        latents = torch.empty(1, 8, num_audio_tokens(media.frames, media.fps), 16)
    return network_cost(nn.ModuleList([vae, vocoder]), lambda: vocoder(vae.decode(latents).sample))


@lru_cache
def text_encoder_cost(tokens: int = 512) -> NetworkCost:
    """umT5-xxl's encoder, of one prompt."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with torch.device("meta"):
        config = UMT5Config(vocab_size=256384, feed_forward_proj="gated-gelu", **sizes)
        network: Any = UMT5EncoderModel(config).eval()
        network.bfloat16()
        ids = torch.empty(1, tokens, dtype=torch.int64)
    return network_cost(network, lambda: network(ids))


def reward_cost(name: str, media: ClipMedia) -> NetworkCost | None:
    """Of a published reward; None for one whose network is not known here, or that has none on a GPU."""
    known = {
        "syncnet": _syncnet,
        "wer_whisper": _whisper,
        "sim_wavlm_ecapa": _wavlm_ecapa,
        "audiobox_pq": _audiobox,
        "clap_text_cosine": _clap,
    }
    return known[name](media) if name in known else None


@lru_cache
def _syncnet(media: ClipMedia) -> NetworkCost:
    """One face throughout the clip."""
    from rewards.sync.layers import PUBLISHED, window_flops
    from rewards.sync.syncnet import SyncNet

    with torch.device("meta"):
        network = SyncNet(PUBLISHED).eval()
    size = sum(parameter.numel() for parameter in network.parameters())
    windows = max(0, round(SYNC_FPS * media.seconds) - SYNC_WINDOW + 1)
    side = PUBLISHED.image_size
    # the crop of every frame and the first maps' answers, in fp32
    crops = 4 * 3 * (windows + SYNC_WINDOW - 1) * side**2
    return NetworkCost(size, 4 * size, 2 * crops, windows * sum(window_flops(PUBLISHED).values()), False)


@lru_cache
def _whisper(media: ClipMedia) -> NetworkCost:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    with torch.device("meta"):
        network = WhisperForConditionalGeneration(WhisperConfig(**WHISPER)).eval()
        features = torch.empty(1, WHISPER["num_mel_bins"], 100 * WINDOW_S)
        tokens = torch.empty(1, max(1, round(TOKENS_PER_S * media.seconds)), dtype=torch.int64)
    return network_cost(network, lambda: network(features, decoder_input_ids=tokens))


@lru_cache
def _wavlm_ecapa(media: ClipMedia) -> NetworkCost:
    from rewards.timbre.wavlm_ecapa import WavlmEcapa

    with torch.device("meta"):
        network = WavlmEcapa().eval()
        sound = torch.empty(1, round(SAMPLE_RATE_HZ * media.seconds))
    return network_cost(network, lambda: network(sound))


@lru_cache
def _audiobox(media: ClipMedia) -> NetworkCost:
    """WavLM-base over windows of 10 s; its four small heads are not counted."""
    from transformers import WavLMConfig, WavLMModel

    windows = max(1, -(-round(media.seconds * 1000) // (1000 * AESTHETICS_WINDOW_S)))
    with torch.device("meta"):
        network = WavLMModel(WavLMConfig()).eval()
        sound = torch.empty(windows, SAMPLE_RATE_HZ * AESTHETICS_WINDOW_S)
    return network_cost(network, lambda: network(sound))


@lru_cache
def _clap(media: ClipMedia) -> NetworkCost:
    """A clip of up to 10 s and its text."""
    from transformers import ClapConfig, ClapModel

    with torch.device("meta"):
        network = ClapModel(ClapConfig(audio_config={"enable_fusion": True})).eval()
        mels = torch.empty(1, CLAP_WINDOWS, CLAP_FRAMES, 64)
        ids = torch.empty(1, TEXT_TOKENS, dtype=torch.int64)

    def call() -> tuple[Any, Tensor]:
        sound: Any = network.get_audio_features(input_features=mels, is_longer=torch.ones(1, 1))
        tower = network.text_model  # without its mask, which looks at values
        return sound, tower.encoder(tower.embeddings(input_ids=ids))[0]

    # it looks which sounds are longer than its window: here all of them
    settings: Any = torch.fx.experimental._config
    with settings.patch(meta_nonzero_assume_all_nonzero=True):
        return network_cost(network, call)
