"""Verbs about codecs whose weights come from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def import_published(
    video: Path,
    audio: Path,
    text: Path,
    speaker: Path,
    to: Path = Path("out/codec"),
    device: str = "auto",
    parked: bool = False,
    video_dtype: Literal["bfloat16", "float32"] = "bfloat16",
    audio_dtype: Literal["bfloat16", "float32"] = "float32",
    text_dtype: Literal["bfloat16", "float32"] = "bfloat16",
    encode_tile: int = 0,
    decode_tile: int = 0,
    tile_overlap: int = 64,
) -> None:
    """Make a codec of published weights: check every part and write TO/config.json, which names them. Weights
    stay where they are.

    --video: folder of the Wan2.2 VAE (or of the whole pipeline). --audio: folder with audio_vae and vocoder
      of LTX-2 or LTX-2.3.
    --text: folder of umT5-xxl, or with text_encoder and tokenizer. --speaker: a ReDimNet file. --device auto
      is the GPU where there is one. --parked: networks wait in the host's memory and are on the GPU only
      while they work, 11 GB of text encoder too.
    --encode-tile and --decode-tile: side of the tiles in pixels that bound memory, 0 for whole frames.
    Nothing is downloaded; the error of a missing part names its source. (`nava codec RECIPE` fits the linear
    codec.)
    """
    from pretrain.codecs.published.folder import CodecOptions, import_codec

    options = CodecOptions(
        device=device,
        parked=parked,
        video_dtype=video_dtype,
        audio_dtype=audio_dtype,
        text_dtype=text_dtype,
        encode_tile=encode_tile,
        decode_tile=decode_tile,
        tile_overlap=tile_overlap,
    )
    print(f"{to}: codec {import_codec(video, audio, text, speaker, to, options)}")
