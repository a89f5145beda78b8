"""Small random parts of a published codec: the same classes and file layouts as the full-size ones, other
sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pretrain.codecs.published.folder import CodecOptions, import_codec
from rewards.timbre.redimnet import ReDimNet, read_config

WAN: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 48,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "is_residual": True,
    "temperal_downsample": [False, True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.01 * i for i in range(48)],
    "latents_std": [0.5 + 0.01 * i for i in range(48)],
}
LTX: dict[str, Any] = {"base_channels": 128, "ch_mult": (1, 1, 1), "num_res_blocks": 0}
VOCODER: dict[str, Any] = {
    "hidden_channels": 16,
    "upsample_kernel_sizes": [16, 30],
    "upsample_factors": [8, 30],
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3]],
    "output_sampling_rate": 24_000,
}
VOCODER_BWE: dict[str, Any] = {
    "hidden_channels": 16,
    "upsample_kernel_sizes": [16, 20],
    "upsample_factors": [8, 20],
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1]],
    "bwe_hidden_channels": 16,
    "bwe_upsample_kernel_sizes": [16, 30],
    "bwe_upsample_factors": [8, 30],
    "bwe_resnet_kernel_sizes": [3],
    "bwe_resnet_dilations": [[1]],
}
TEXT_WIDTH = 256  # as the debug model's
REDIMNET: dict[str, Any] = {
    "F": 4,
    "C": 4,
    "block_1d_type": "att",
    "block_2d_type": "convnext_like",
    "group_divisor": 2,
    "out_channels": None,
    "embed_dim": 192,
    "stages_setup": [(1, 1, 1, [(3, 3)], None), (2, 1, 1, [(3, 3)], 2)],
    "hop_length": 160,
    "num_classes": None,
}
EXACT = CodecOptions(device="cpu", video_dtype="float32", text_dtype="float32")
WORDS = (
    "a man woman says hello seven nine zero and the one two camera pans left on blue wall voice with "
    "red hair ."
)


def write_parts(folder: Path) -> Path:
    """pipeline/vae, pipeline/text_encoder, pipeline/tokenizer, ltx/audio_vae, ltx/vocoder and speaker.pt in
    `folder`."""
    torch.manual_seed(0)
    write_wan(folder / "pipeline" / "vae")
    write_text(folder / "pipeline")
    write_audio(folder / "ltx")
    torch.save(
        {"model_config": REDIMNET, "state_dict": ReDimNet(read_config(REDIMNET, "test")).state_dict()},
        folder / "speaker.pt",
    )
    return folder


def write_codec(parts: Path, to: Path, options: CodecOptions = EXACT) -> str:
    return import_codec(
        parts / "pipeline", parts / "ltx", parts / "pipeline", parts / "speaker.pt", to, options
    )


def write_wan(folder: Path, **changes: Any) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    AutoencoderKLWan(**WAN | changes).save_pretrained(folder)


def write_audio(folder: Path, bandwidth_extension: bool = False) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    vae = AutoencoderKLLTX2Audio(**LTX)
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 128))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, 128))
    vae.save_pretrained(folder / "audio_vae")
    vocoder: Any = LTX2VocoderWithBWE(**VOCODER_BWE) if bandwidth_extension else LTX2Vocoder(**VOCODER)
    vocoder.save_pretrained(folder / "vocoder")


def write_text(folder: Path, width: int = TEXT_WIDTH, extra_ids: int = 5) -> None:
    """A UMT5 of two layers and a Unigram tokenizer trained on a few words, with sentinels as umT5's has."""
    from transformers import UMT5Config, UMT5EncoderModel

    size = write_tokenizer(folder / "tokenizer", extra_ids)
    config = UMT5Config(
        vocab_size=size,
        d_model=width,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")


def write_tokenizer(folder: Path, extra_ids: int = 5) -> int:
    """Returns how many tokens it knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        [WORDS, "<S>seven<E>"] * 20,
        trainers.UnigramTrainer(
            vocab_size=120,
            special_tokens=special,
            unk_token="<unk>",
            show_progress=False,
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz<>SE/"),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens(
        {"additional_special_tokens": [f"<extra_id_{index}>" for index in range(extra_ids)]}
    )
    fast.save_pretrained(folder)
    return len(fast)
