"""A small random model with its codec and prompts, for tests of generation that make many clips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model_cases import debug_model

from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.flow.guidance import GuidanceScales
from pretrain.generation.config import GenerateConfig
from pretrain.media.write import write_wav
from pretrain.model.checkpoint import write_model
from pretrain.model.flavors import flavor
from pretrain.sampling import SamplerConfig

QUICK = GenerateConfig(
    sampler=SamplerConfig(solver="euler", steps=2, shift=1.0, guidance=GuidanceScales()),
    num_frames=5,
    height=32,
    width=64,
    batch_size=2,
    bf16=False,
    threads=1,
    keep_latents=True,
)


def write_model_and_codec(folder: Path) -> Path:
    """folder/model, folder/codec and folder/voice.wav."""
    talk = dict.fromkeys(("talk_a", "talk_b", "talk_test"), 0)
    sizes = CorpusConfig(paired=12, audio_only=12, hq_audio=6, validation=2, processes=1, **talk)
    build_corpus(sizes, folder / "corpus")
    fit_codecs(CodecConfig(), folder / "corpus", folder / "codec")
    write_debug_model(folder / "model", folder / "codec")
    write_wav(folder / "voice.wav", next(iter(load_bank().utterances.values()))[0].waveform, 16_000)
    return folder


def write_debug_model(folder: Path, codec: Path, **facts: Any) -> None:
    codec_id = json.loads((codec / "config.json").read_text())["codec_id"]
    state = debug_model().state_dict()
    write_model(folder, "debug", flavor("debug"), {"ema": state}, {"codec_id": codec_id, **facts})


def write_prompts(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Of two lengths, a third with a voice."""
    return [
        {
            "data_id": f"c{number:03d}",
            "prompt": f"A man says: <S>zero<E>, number {number}.",
            "num_frames": 9 if number % 2 else 5,
            **({"spk_wavs": ["voice.wav"]} if number % 3 == 0 else {}),
        }
        for number in range(count)
    ]


def files_in(folder: Path) -> dict[str, bytes]:
    """Content of all files but the marker, which says how many threads made them."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".nava-output.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
