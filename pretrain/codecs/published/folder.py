"""A codec folder of kind `published`: config.json with each part's path, digest and options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pretrain.codecs.base import Codecs
from pretrain.codecs.published import ltx_audio, redimnet, umt5, wan
from pretrain.codecs.published.deferred import Deferred, device_named
from pretrain.codecs.published.weights import (
    Digests,
    Source,
    check_unchanged,
    digests,
    fingerprint,
    part_folder,
)
from pretrain.config import override
from pretrain.files import write_json

Precision = Literal["bfloat16", "float32"]
_SOURCES: dict[str, Source] = {
    "video": wan.SOURCE,
    "audio": ltx_audio.VAE_SOURCE,
    "vocoder": ltx_audio.VOCODER_SOURCE,
    "text": umt5.SOURCE,
    "tokenizer": umt5.SOURCE,
    "speaker": redimnet.SOURCE,
}
_AGAIN = "run `nava codec import` again"


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """How the parts run, by default in the release's precision; what shapes latents enters the codec id."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1
    parked: bool = False  # networks wait in the host's memory and are on the device only while they work
    video_dtype: Precision = "bfloat16"
    audio_dtype: Precision = "float32"
    text_dtype: Precision = "bfloat16"
    encode_tile: int = 0  # pixels, a multiple of 32; 0 = whole frames
    decode_tile: int = 0
    tile_overlap: int = 64

    def __post_init__(self) -> None:
        for name in ("video_dtype", "audio_dtype", "text_dtype"):
            if getattr(self, name) not in ("bfloat16", "float32"):
                raise ValueError(f"{name}: unknown {getattr(self, name)!r}; valid: bfloat16, float32")
        for size in (self.encode_tile, self.decode_tile):
            self.tiles(size)

    def tiles(self, size: int) -> wan.Tiles:
        return wan.Tiles(size, self.tile_overlap if size else 0)


def import_codec(
    video: Path, audio: Path, text: Path, speaker: Path, to: Path, options: CodecOptions = CodecOptions()
) -> str:
    """Checks the four parts and writes `to`/config.json; returns the codec's id. Weights stay where they are.

    Raises FileNotFoundError or ValueError in one line for a part that is missing, truncated or another one;
    then nothing is written.
    """
    if to.exists() and any(to.iterdir()) and _kind_of(to) != "published":
        raise ValueError(f"{to}: not empty and not a published codec; give another folder")
    parts: dict[str, dict[str, Any]] = {}

    def add(name: str, folder: Path, files: list[Path]) -> None:
        parts[name] = {"path": str(folder.absolute()), "files": files}

    add("video", folder := part_folder(video, "vae", wan.SOURCE), wan.check_wan(folder))
    vae, vocoder = _audio_folders(audio)
    add("audio", vae, ltx_audio.check_ltx(vae))
    add("vocoder", vocoder, ltx_audio.check_vocoder(vocoder))
    encoder, tokenizer = umt5.text_folders(text)
    text_files, tokenizer_files, width = umt5.check_umt5(encoder, tokenizer)
    add("text", encoder, text_files)
    add("tokenizer", tokenizer, tokenizer_files)
    redimnet.load_redimnet(speaker, "cpu")
    add("speaker", speaker.parent, [speaker])
    for part in parts.values():
        part["files"] = digests(Path(part["files"][0]).parent, part["files"])
    codec_id = _codec_id({name: part["files"] for name, part in parts.items()}, options)
    config = {
        "kind": "published",
        "codec_id": codec_id,
        "conditioner": redimnet.ReDimNetSpeaker.name,
        "text_width": width,
        "options": dataclasses.asdict(options),
        "parts": parts,
    }
    write_json(to / "config.json", config, indent=1)
    return codec_id


def load_published(folder: Path, config: Mapping[str, Any]) -> Codecs:
    """Codecs of a folder of kind `published`; a part's weights are checked and read when it is first used.

    Raises ValueError in one line for the config, PartError (an OSError) for a part at its first use.
    """
    where = folder / "config.json"
    try:
        options = override(CodecOptions(), config["options"], f"{where} options")
        paths = {name: Path(config["parts"][name]["path"]) for name in _SOURCES}
        files: dict[str, Digests] = {name: config["parts"][name]["files"] for name in _SOURCES}
        found, width = _codec_id(files, options), int(config["text_width"])
        speaker_file = paths["speaker"] / next(iter(files["speaker"]))
        codec_id = config["codec_id"]
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"{where}: not a published codec's config ({error!r}); {_AGAIN}") from None
    if found != codec_id:
        raise ValueError(
            f"{where}: options and digests are of codec {found}, codec_id says {codec_id}; {_AGAIN}"
        )
    device = device_named(options.device)

    deferred = partial(Deferred, parked_from=device if options.parked else "")

    def ready(*names: str) -> None:
        for name in names:
            check_unchanged(paths[name], files[name], _SOURCES[name])

    def load_video() -> Any:
        ready("video")
        return wan.load_wan(paths["video"], _dtype(options.video_dtype), device)

    def load_audio() -> Any:
        ready("audio", "vocoder")
        return ltx_audio.load_ltx(paths["audio"], paths["vocoder"], _dtype(options.audio_dtype), device)

    def load_text() -> Any:
        ready("text", "tokenizer")
        return umt5.load_umt5(paths["text"], paths["tokenizer"], _dtype(options.text_dtype), device)

    def load_speaker() -> Any:
        ready("speaker")
        return redimnet.load_redimnet(speaker_file, device)

    tokenizer = Deferred(partial(_load_tokenizer, paths["tokenizer"], files["tokenizer"]))
    return Codecs(
        video=wan.WanVideoCodec(
            deferred(load_video), options.tiles(options.encode_tile), options.tiles(options.decode_tile)
        ),
        audio=ltx_audio.LtxAudioCodec(deferred(load_audio)),
        text=umt5.UMT5TextEncoder(deferred(load_text), width, tokenizer),
        speaker=redimnet.ReDimNetSpeaker(deferred(load_speaker)),
        codec_id=codec_id,
        decoder_id=_decoder_id(files, options),
    )


def _load_tokenizer(folder: Path, files: Digests) -> Any:
    check_unchanged(folder, files, _SOURCES["tokenizer"])
    return umt5.load_tokenizer(folder)


def _audio_folders(path: Path) -> tuple[Path, Path]:
    """(VAE, vocoder): subfolders audio_vae and vocoder of `given`, or `given` and its sibling vocoder."""
    vae = part_folder(path, "audio_vae", ltx_audio.VAE_SOURCE)
    vocoder = vae.parent / "vocoder" if vae != path or (vae.parent / "vocoder").is_dir() else path / "vocoder"
    return vae, part_folder(vocoder, "vocoder", ltx_audio.VOCODER_SOURCE)


def _codec_id(files: Mapping[str, Digests], options: CodecOptions) -> str:
    """The vocoder, the device and the tiles of decoding shape no latents."""
    shaping = _sha256s({name: found for name, found in files.items() if name != "vocoder"})
    chosen = {
        name: getattr(options, name) for name in ("video_dtype", "audio_dtype", "text_dtype", "encode_tile")
    }
    if options.encode_tile:
        chosen["tile_overlap"] = options.tile_overlap
    return fingerprint({**shaping, "options": chosen})


def _decoder_id(files: Mapping[str, Digests], options: CodecOptions) -> str:
    """Weights, precision and tiles that latents go through; not the device."""
    chosen: dict[str, Any] = {"video_dtype": options.video_dtype, "audio_dtype": options.audio_dtype}
    if options.decode_tile:
        chosen |= {"decode_tile": options.decode_tile, "tile_overlap": options.tile_overlap}
    return fingerprint(
        {**_sha256s({name: files[name] for name in ("video", "audio", "vocoder")}), "options": chosen}
    )


def _sha256s(files: Mapping[str, Digests]) -> dict[str, Any]:
    return {name: {file: facts["sha256"] for file, facts in found.items()} for name, found in files.items()}


def _kind_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _dtype(name: Precision) -> Any:
    import torch

    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
