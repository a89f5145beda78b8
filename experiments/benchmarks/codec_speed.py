"""Throughput of the codecs: `python -m experiments.benchmarks.codec_speed --out FILE`.

The published video VAE has Wan2.2's sizes with random weights (what it computes takes the same time), the
audio VAE and vocoder LTX-2's. Each clip is encoded and decoded; figures are seconds of video (or sound) per
second, and pixels or samples per second. The linear codec of the mini is measured beside them where a fitted
one is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from experiments.benchmarks.harness import Row, facts, make_parser, parse, printed, repeated, summary, write
from pretrain.codecs.base import AudioCodec, VideoCodec
from pretrain.codecs.load import load_codecs
from pretrain.codecs.published.ltx_audio import LtxAudioCodec, Networks
from pretrain.codecs.published.wan import WanVideoCodec
from pretrain.types import AUDIO_SAMPLE_RATE_HZ, AUDIO_TOKENS_PER_S

FPS, REPEATS = 24.0, 3
COLUMNS = {"s": "seconds.low", "times real time": "times_real_time", "pixels or samples/s": "per_s"}
# AutoencoderKLWan of Wan2.2-TI2V-5B; the statistics of latents do not change the time
_WAN: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "is_residual": True,
    "temperal_downsample": [False, True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def published(dtype: torch.dtype, device: torch.device) -> tuple[VideoCodec, AudioCodec]:
    """Codecs of the published sizes with random weights; audio stays in fp32, as `nava codec import` sets
    it."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    torch.manual_seed(0)
    vae, audio, vocoder = cast(list[Any], [AutoencoderKLWan(**_WAN), AutoencoderKLLTX2Audio(), LTX2Vocoder()])
    vae.to(device, dtype).eval()
    networks = Networks(audio.to(device).eval(), vocoder.to(device).eval())
    return WanVideoCodec(lambda: vae), LtxAudioCodec(lambda: networks)


def speed(
    video: VideoCodec, audio: AudioCodec, size: tuple[int, int, int, int], device: torch.device
) -> dict[str, Any]:
    """Encoding and decoding of random clips; `size`: clips, frames, height, width."""
    batch, frames, height, width = size
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    sound = torch.randn(batch, round(frames / FPS * AUDIO_SAMPLE_RATE_HZ)) * 0.1
    pictures, sounds = video.encode(pixels), audio.encode(sound)
    clip_s, num_pixels = frames / FPS, pixels.numel() // 3
    decoded_s = sounds.shape[-1] / AUDIO_TOKENS_PER_S

    def rate(name: str, work: Callable[[], object], seconds: float, elements: int) -> Row:
        times = repeated(work, REPEATS, device)
        times_real_time = float(f"{batch * seconds / min(times):.4g}")
        per_s = round(elements / min(times))
        return name, {"seconds": summary(times), "times_real_time": times_real_time, "per_s": per_s}

    works = (
        ("video_encode", lambda: video.encode(pixels), clip_s, num_pixels),
        ("video_decode", lambda: video.decode(pictures), clip_s, num_pixels),
        ("audio_encode", lambda: audio.encode(sound), clip_s, sound.numel()),
        ("audio_decode", lambda: audio.decode(sounds), decoded_s, sound.numel()),
    )
    clip = {"frames": frames, "height": height, "width": width, "batch": batch, "seconds": round(clip_s, 3)}
    return {"clip": clip, **dict(printed((rate(*work) for work in works), COLUMNS))}


def main() -> None:
    parser = make_parser(__doc__, device=True)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--linear", type=Path, help="a fitted codec of the mini, e.g. out/codec")
    options = parse(parser)
    size = (1, options.frames, options.height, options.width)
    codecs = published(getattr(torch, options.dtype), options.device)
    found = {**facts("diffusers", device=options.device), "video_dtype": options.dtype}
    found["published"] = speed(*codecs, size, options.device)
    if options.linear:
        linear = load_codecs(options.linear)
        found["linear"] = speed(linear.video, linear.audio, (32, 25, 64, 64), options.device)
    write(found, options.out)


if __name__ == "__main__":
    main()
