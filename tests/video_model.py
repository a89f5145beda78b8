"""A small random model with its codec and an adapter, as folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model_cases import debug_model

from finetune.adapters import Adapter, save_adapter
from finetune.lora import LoraConfig, adapter_shapes
from pretrain.codecs.fit import CodecConfig, fit_codecs
from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.build import CorpusConfig, build_corpus
from pretrain.media.write import write_wav
from pretrain.model.checkpoint import read_model_folder, write_model
from pretrain.model.flavors import build_model, flavor


def shared_model(base: Path) -> Path:
    """One for all modules of a test run; base: pytest's temporary folder of the run."""
    return random_model(base / "video_model")


def random_model(folder: Path) -> Path:
    """folder/model, folder/codec, folder/adapter and folder/voice.wav, made where they are missing."""
    if (folder / "adapter" / "adapter.json").is_file():
        return folder
    talk = dict.fromkeys(("talk_a", "talk_b", "talk_test"), 0)
    build_corpus(
        CorpusConfig(paired=40, audio_only=40, hq_audio=20, validation=4, processes=1, **talk),
        folder / "corpus",
    )
    fit_codecs(CodecConfig(), folder / "corpus", folder / "codec")
    codec_id = json.loads((folder / "codec" / "config.json").read_text())["codec_id"]
    weights = {"ema": debug_model().state_dict()}
    write_model(folder / "model", "debug", flavor("debug"), weights, {"codec_id": codec_id, "stage": "none"})
    write_wav(folder / "voice.wav", next(iter(load_bank().utterances.values()))[0].waveform, 16_000)
    described = read_model_folder(folder / "model")
    with torch.device("meta"):
        empty = build_model(described.args)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.05 * torch.randn(shape, generator=generator)
        for name, shape in adapter_shapes(empty, LoraConfig()).items()
    }
    adapter = Adapter(flavor="debug", base_id=str(described.facts["checkpoint_id"]), config=LoraConfig())
    save_adapter(folder / "adapter", tensors, adapter)
    return folder
