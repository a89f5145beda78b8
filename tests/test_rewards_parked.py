"""Rewards' networks are on their device while they score, on the host between, and answer the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_networks import Axes
from test_rewards_clap import save_tiny_clap
from test_rewards_redimnet import content as redimnet_file
from test_rewards_wavlm import SMALL, published_form, randomise
from test_rewards_whisper import save_tiny_whisper
from torch import nn

from rewards.parking import Parking, parked
from rewards.quality.audiobox import AXES, AudioboxAesthetics
from rewards.semantic.clap import ClapEncoder, TextSoundCosine, VerseBenchDistance
from rewards.speech.whisper import WhisperTranscriber
from rewards.timbre.redimnet import ReDimNetEncoder
from rewards.timbre.wavlm_ecapa import WavlmEcapa, WavlmEcapaEncoder
from rewards.types import Clip

GPU = "cuda:0"
Made = tuple[Any, nn.Module, Callable[[], Any]]  # who has the network, the network, a call of it
SOUND = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where networks were sent; nothing is moved, as there is no GPU."""
    sent: list[str] = []
    monkeypatch.setattr(Parking, "_move", lambda self, device: sent.append(device))
    return sent


def audiobox(folder: Path, park: bool) -> Made:
    torch.manual_seed(0)
    reward = AudioboxAesthetics(Axes(), {axis: (5.0, 1.0) for axis in AXES}, park=park)
    return reward, reward._model, lambda: [score.value for score in reward._score([SOUND])]


def clap_sounds(folder: Path, park: bool) -> Made:
    encoder = ClapEncoder.load(save_tiny_clap(folder), park=park)
    return encoder, encoder._model.audio_model, lambda: encoder.embed_sounds([SOUND])


def clap_texts(folder: Path, park: bool) -> Made:
    encoder = ClapEncoder.load(save_tiny_clap(folder), park=park)
    return encoder, encoder._model.text_model, lambda: encoder.embed_texts(["rain"])


def whisper(folder: Path, park: bool) -> Made:
    transcriber = WhisperTranscriber(save_tiny_whisper(folder), park=park)
    return transcriber, transcriber.model.get_encoder(), lambda: transcriber.transcribe([SOUND])


def redimnet(folder: Path, park: bool) -> Made:
    torch.save(redimnet_file(), folder / "redimnet.pt")
    encoder = ReDimNetEncoder(folder / "redimnet.pt", park=park)
    return encoder, encoder._net, lambda: encoder.embed([SOUND])


def wavlm(folder: Path, park: bool) -> Made:
    torch.manual_seed(0)
    net = WavlmEcapa(SMALL).eval()
    randomise(net, 0)
    torch.save({"model": published_form(net)}, folder / "wavlm.pth")
    encoder = WavlmEcapaEncoder(folder / "wavlm.pth", args=SMALL, park=park)
    return encoder, encoder._net, lambda: encoder.embed([SOUND])


@pytest.mark.parametrize("reward", [audiobox, clap_sounds, clap_texts, whisper, redimnet, wavlm])
def test_a_parked_network_is_there_when_it_runs_and_leaves_after(reward, tmp_path, places):
    *_, answer = reward(tmp_path, False)
    want = answer()
    places.clear()
    owner, network, answer = reward(tmp_path, True)
    owner._parking._device = GPU  # what it is made for is not here
    seen: list[str] = []
    network.register_forward_pre_hook(lambda *_: seen.append(places[-1]))
    np.testing.assert_array_equal(answer(), want)
    assert set(seen) == {GPU} and places == [GPU, "cpu"]


@pytest.mark.parametrize("scorer", [VerseBenchDistance, TextSoundCosine])
def test_a_batch_of_two_calls_moves_the_network_once(scorer, tmp_path, places):
    encoder = ClapEncoder.load(save_tiny_clap(tmp_path), park=True)
    encoder._parking._device = GPU
    clip = Clip(SOUND, 16_000, prompt="rain", reference_sound=SOUND)
    (score,) = scorer(encoder).score([clip])
    assert not score.reason and places == [GPU, "cpu"]


def test_two_users_at_once_move_it_once():
    class Moved(nn.Linear):
        sent: list[str] = []

        def to(self, device: str) -> Moved:  # type: ignore[override]
            self.sent.append(device)
            return self

    network = Moved(1, 1)
    parking = parked(network, GPU, park=True)
    assert network.sent == []  # it waits on the host from the start
    with parking.working(), parking.working():
        assert network.sent == [GPU]
    assert network.sent == [GPU, "cpu"]
    assert parked(Moved(1, 1), GPU, park=False) and network.sent[-1] == GPU
