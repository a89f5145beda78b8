"""Codecs and rewards' networks on a pretended GPU: files' contents from the host, answers to the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretend_gpu import GPU, pretend_gpu
from published_parts import LTX, REDIMNET, VOCODER, WAN, write_tokenizer
from torch import Tensor, nn

Crossings = dict[str, int]
SOUND = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


def _compared(networks: dict[str, Any], run: Callable[[dict[str, Any]], Any]) -> Crossings:
    """run(networks) on the CPU, then with the networks on the GPU: the same values, and what crossed."""
    want = _on_cpu(run(networks))
    with pretend_gpu() as gpu:
        for network in networks.values():
            gpu.put(network)
        found = run(networks)
        places = gpu.places()
        found = _on_cpu(found)
    np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-3)
    return places


def _on_cpu(answer: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float32).ravel() for part in answer])


def wan() -> Crossings:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    from pretrain.codecs.published.wan import WanVideoCodec

    torch.manual_seed(0)
    network = AutoencoderKLWan(**WAN).eval()
    frames = torch.randint(0, 256, (1, 5, 32, 32, 3), dtype=torch.uint8)

    def run(networks: dict[str, Any]) -> tuple[Tensor, Tensor]:
        codec = WanVideoCodec(lambda: networks["vae"])
        latents = codec.encode(frames)
        return latents, codec.decode(latents).float() / 255

    return _compared({"vae": network}, run)


def ltx() -> Crossings:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    from pretrain.codecs.published.ltx_audio import LtxAudioCodec, Networks

    torch.manual_seed(0)
    networks = {"vae": AutoencoderKLLTX2Audio(**LTX).eval(), "vocoder": LTX2Vocoder(**VOCODER).eval()}

    def run(networks: dict[str, Any]) -> tuple[Tensor, Tensor]:
        codec = LtxAudioCodec(lambda: Networks(networks["vae"], networks["vocoder"]))
        latents = codec.encode(torch.from_numpy(SOUND[None]))
        return latents, codec.decode(latents)

    return _compared(networks, run)


def umt5(folder: Path) -> Crossings:
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    from pretrain.codecs.published.umt5 import TextNetworks, UMT5TextEncoder
    from pretrain.prompt import parse

    size = write_tokenizer(folder)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    network = UMT5EncoderModel(UMT5Config(vocab_size=size, pad_token_id=0, eos_token_id=1, **sizes)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [parse("a man says <S>seven<E>"), parse("a woman with red hair says hello")]

    def run(networks: dict[str, Any]) -> tuple[Tensor]:
        with torch.no_grad():
            encoder = UMT5TextEncoder(lambda: TextNetworks(tokenizer, networks["text"]), 32)
            return (encoder.encode(prompts).states,)

    return _compared({"text": network}, run)


def speaker() -> Crossings:
    from pretrain.codecs.published.redimnet import ReDimNetSpeaker

    run = lambda networks: (ReDimNetSpeaker(lambda: networks["net"]).embed(torch.from_numpy(SOUND)),)  # noqa: E731
    return _compared({"net": _redimnet()}, run)


def _redimnet() -> nn.Module:
    from rewards.timbre.redimnet import ReDimNet, read_config

    torch.manual_seed(0)
    return ReDimNet(read_config(REDIMNET, "test")).eval()


def voices(name: str) -> Crossings:
    """redimnet or wavlm_ecapa, by the batches that their rewards make."""
    from test_rewards_wavlm import SMALL, randomise

    from rewards.timbre.encoder import by_length
    from rewards.timbre.wavlm_ecapa import WavlmEcapa

    net: nn.Module = _redimnet()
    if name == "wavlm_ecapa":
        net = WavlmEcapa(SMALL).eval()
        randomise(net, 0)
    sounds = [SOUND, SOUND[::-1].copy(), SOUND[:8000]]

    def run(networks: dict[str, Any]) -> tuple[np.ndarray]:
        device = next(networks["net"].parameters()).device
        return (by_length(networks["net"], sounds, str(device)),)

    return _compared({"net": net}, run)


def syncnet() -> Crossings:
    """Embedder's own towers; what it embeds lies on the host."""
    from rewards.sync.inference import Embedder
    from rewards.sync.syncnet import MINI, SyncNet

    torch.manual_seed(0)
    net, random = SyncNet(MINI).eval(), np.random.default_rng(0)
    crops = [random.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8) for _ in range(2)]
    sounds = [random.standard_normal((4, 1, 13, 20)).astype(np.float32)]

    def embed(embedder: Embedder) -> np.ndarray:
        return _on_cpu([*embedder.lips(crops), *embedder.sound(sounds)])

    want = embed(Embedder(net))
    with pretend_gpu() as gpu:
        embedder = Embedder(net, device=str(GPU))
        gpu.crossings.clear()  # its weights
        found = embed(embedder)
        places = gpu.places()
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)
    return places


def whisper(folder: Path) -> Crossings:
    """Encoder and one pass of the decoder of a recogniser; transformers' own loop looks at every token."""
    from test_rewards_whisper import save_tiny_whisper
    from transformers import WhisperForConditionalGeneration

    network = WhisperForConditionalGeneration.from_pretrained(save_tiny_whisper(folder)).eval()
    features = torch.randn(1, 8, 3000)

    def run(networks: dict[str, Any]) -> tuple[Tensor]:
        model = networks["net"]
        device = next(model.parameters()).device
        with torch.no_grad():
            start = torch.full((1, 1), model.config.decoder_start_token_id, device=device)
            heard = features.to(device, non_blocking=True)
            return (model(heard, decoder_input_ids=start).logits.cpu(),)

    return _compared({"net": network}, run)


def clap(folder: Path) -> Crossings:
    """Sounds and texts by the encoder's own calls; its extractor works on the host."""
    from test_rewards_clap import save_tiny_clap

    from rewards.semantic.clap import ClapEncoder

    made = ClapEncoder.load(save_tiny_clap(folder))
    sounds = [np.tile(SOUND, 3), SOUND]

    def run(networks: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        made._device = str(next(networks["net"].parameters()).device)
        return made.embed_sounds(sounds), made.embed_texts(["rain", "a dog"])

    return _compared({"net": made._model}, run)


class Axes(nn.Module):
    """Called as Audiobox's class is, with a mean and a map of each axis."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(160, 4)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sound = torch.where(batch["mask"], batch["wav"], 0.0).reshape(len(batch["wav"]), 1000, 160).mean(1)
        return dict(zip(("CE", "CU", "PC", "PQ"), self.map(sound).unbind(1), strict=True))


def audiobox() -> Crossings:
    """The reward around its network, a stand-in with the network's inputs and outputs."""
    from rewards.quality.audiobox import AXES, AudioboxAesthetics

    torch.manual_seed(0)
    reward = AudioboxAesthetics(Axes(), {axis: (5.0, 1.0) for axis in AXES})
    sounds = [SOUND, np.tile(SOUND, 11)]

    def run(networks: dict[str, Any]) -> tuple[np.ndarray]:
        reward._device = str(next(networks["net"].parameters()).device)
        return (np.array([score.value for score in reward._score(sounds)]),)

    return _compared({"net": reward._model}, run)
