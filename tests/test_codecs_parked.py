"""Networks that are on their device only while they work."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from published_parts import write_codec, write_parts
from torch import nn

from pretrain.codecs.load import load_codecs
from pretrain.codecs.published.deferred import Deferred, on_device
from pretrain.prompt import parse

GPU = "cuda:0"


class Recorded(nn.Linear):
    """Notes where it is sent, and goes nowhere."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []

    def to(self, device: str) -> Recorded:  # type: ignore[override]
        self.sent.append(device)
        return self


class Codec:
    def __init__(self, networks) -> None:
        self.networks = networks

    @on_device
    def encode(self, value: int, scale: int = 1) -> tuple[int, list[str]]:
        return value * scale, list(self.networks().sent)

    @on_device
    def fails(self) -> None:
        self.networks()
        raise ValueError("bad clip")


def test_it_is_loaded_on_the_device_and_waits_on_the_host_between_calls():
    network = Recorded()
    codec = Codec(Deferred(lambda: network, GPU))
    assert codec.encode(2, scale=3) == (6, []) and network.sent == ["cpu"]  # `make` put it there
    assert codec.encode(1)[1] == ["cpu", GPU] and network.sent == ["cpu", GPU, "cpu"]
    with pytest.raises(ValueError, match="bad clip"):
        codec.fails()
    assert network.sent[-1] == "cpu"


def test_it_stays_while_another_thread_works_with_it():
    network = Recorded()
    networks = Deferred(lambda: network, GPU)
    networks()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with networks.working():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with networks.working():
        pass
    assert network.sent == [GPU]
    leave.set()
    thread.join(10)
    assert network.sent == [GPU, "cpu"]


@pytest.mark.parametrize("place", ["", "cpu"])
def test_without_parking_or_a_gpu_nothing_moves(place):
    network = Recorded()
    codec = Codec(Deferred(lambda: network, place))
    codec.encode(1)
    codec.encode(1)
    assert network.sent == [] and Codec(lambda: network).encode(2)[0] == 2


def test_a_tokenizer_beside_the_network_is_left_alone():
    network = Recorded()
    networks = Deferred(lambda: ("tokenizer", network), GPU)
    with networks.working():
        networks()
    assert network.sent == ["cpu"]


def test_every_part_of_a_published_codec_works_as_before(tmp_path: Path):
    """And its id is the same: where networks wait shapes no latents."""
    folder = tmp_path / "codec"
    write_codec(write_parts(tmp_path / "parts"), folder)
    plain = load_codecs(folder)
    config = json.loads((folder / "config.json").read_text())
    config["options"]["parked"] = True
    (folder / "config.json").write_text(json.dumps(config))
    parked = load_codecs(folder)
    assert plain.codec_id == parked.codec_id
    frames = torch.randint(0, 256, (1, 5, 64, 64, 3), dtype=torch.uint8)
    sound, prompt = torch.randn(1, 3200) / 10, [parse("A man says <S>one<E>.")]
    for one, other in (
        (plain.video.encode(frames), parked.video.encode(frames)),
        (plain.audio.encode(sound), parked.audio.encode(sound)),
        (plain.text.encode(prompt).states, parked.text.encode(prompt).states),
        (plain.speaker.embed(sound[0]), parked.speaker.embed(sound[0])),
    ):
        assert torch.equal(one, other)
    networks = [parked.video, parked.audio, parked.text, parked.speaker]
    assert all(isinstance(part.networks, Deferred) and part.networks.loaded for part in networks)  # type: ignore[attr-defined]
