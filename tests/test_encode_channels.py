"""Sound of two channels through encoding: kept apart where the codec has two, and voices of the mono mix
always."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published_parts import write_codec, write_parts
from test_encode import RATE, make_row
from torch import Tensor

from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.data.encoding.clips import Streams
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.encoding.encode import encode_set
from pretrain.data.encoding.encode_units import SetEncoder
from pretrain.data.encoding.units import split
from pretrain.data.manifest import ManifestRow, write_manifest
from pretrain.data.stream.store import LatentStore
from pretrain.media.write import write_mp4, write_wav

SAMPLES = 26 * 640
TONE = (np.round(0.3 * 32768 * np.sin(2 * np.pi * 440 * np.arange(SAMPLES) / RATE)) / 32768).astype(
    np.float32
)
LEFT = np.stack([TONE, 0 * TONE])


class Loudness:
    """Mean squares of the tokens: latent 0 of a mono sound, latents 0 and 1 of the sides of a stereo one."""

    sample_rate_hz = RATE

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, waveform: Tensor) -> Tensor:
        sides = waveform if waveform.dim() == 3 else waveform[:, None]
        assert sides.shape[1] == self.channels
        squares = sides.unflatten(2, (-1, 640)).square().mean(3)
        return torch.nn.functional.pad(squares, (0, 0, 0, 128 - self.channels))

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    decode_channels = decode


class Voice:
    """What it was given."""

    name = "voice"

    def __init__(self) -> None:
        self.heard: list[Tensor] = []

    def embed(self, waveform: Tensor) -> Tensor:
        self.heard.append(waveform)
        return torch.ones(192)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Codecs:
    parts = write_parts(tmp_path_factory.mktemp("parts"))
    write_codec(parts, parts / "codec")
    return load_codecs(parts / "codec")


def sound_row(folder: Path, waveform: np.ndarray, name: str = "sound", **changes: object) -> ManifestRow:
    row = make_row(folder, 1, 25, sound_only=True)
    write_wav(folder / f"{name}.wav", waveform, RATE)
    times = {"speech_start_s": (0.25,), "speech_end_s": (0.5,), "text": "A voice says <S>one<E>."}
    return replace(row, data_id=name, data_path=folder / f"{name}.wav", **{**times, **changes})  # type: ignore[arg-type]


def encoded(folder: Path, rows: list[ManifestRow], codecs: Codecs, audio_only: bool = True) -> LatentStore:
    write_manifest(folder / "rows.jsonl", rows)
    encode_set(EncodeConfig(), folder / "rows.jsonl", codecs, folder / "set", audio_only)
    return LatentStore(folder / "set")


def test_a_tone_on_the_left_stays_there(tmp_path: Path, published: Codecs) -> None:
    rows = [
        sound_row(tmp_path, LEFT, "left"),
        sound_row(tmp_path, LEFT[::-1], "right"),
        sound_row(tmp_path, TONE, "mono"),
    ]
    left, right, mono = (
        sample.audio
        for sample in encoded(tmp_path, rows, replace(published, audio=Loudness(2), speaker=Voice()))
    )
    assert left is not None and right is not None and mono is not None
    expected = torch.from_numpy(TONE).view(-1, 640).square().mean(1)
    torch.testing.assert_close(left[0], expected, atol=1e-5, rtol=1e-5)
    assert not bool(left[1].any()) and torch.equal(right[1], left[0]) and not bool(right[0].any())
    assert torch.equal(mono[0], left[0]) and torch.equal(mono[1], left[0])


def test_a_codec_of_one_channel_gets_the_side_that_sounds(tmp_path: Path, published: Codecs) -> None:
    sample = encoded(
        tmp_path, [sound_row(tmp_path, LEFT)], replace(published, audio=Loudness(1), speaker=Voice())
    )[0]
    assert sample.audio is not None
    torch.testing.assert_close(
        sample.audio[0], torch.from_numpy(TONE).view(-1, 640).square().mean(1), atol=1e-5, rtol=1e-5
    )


def test_sides_of_a_film_stay_apart(tmp_path: Path, published: Codecs) -> None:
    row = make_row(tmp_path, 1, 25)
    write_mp4(row.data_path, np.zeros((25, 32, 32, 3), np.uint8), 24, LEFT, RATE)
    codecs = replace(published, audio=Loudness(2), speaker=Voice())
    sample = encoded(tmp_path, [row], codecs, audio_only=False)[0]
    assert sample.audio is not None and sample.video is not None and sample.audio.shape == (128, 26)
    assert abs(float(sample.audio[0, 2:24].mean()) - 0.045) < 1e-3 and float(sample.audio[1].max()) < 1e-6


def test_the_published_codec_gets_both_sides(tmp_path: Path, published: Codecs) -> None:
    rows = [
        sound_row(tmp_path, LEFT, "left"),
        sound_row(tmp_path, LEFT[::-1], "right"),
        sound_row(tmp_path, TONE, "mono"),
    ]
    found = [sample.audio for sample in encoded(tmp_path, rows, replace(published, speaker=Voice()))]
    stereo = torch.from_numpy(np.stack([LEFT, LEFT[::-1], np.stack([TONE, TONE])]))
    expected = published.audio.encode(stereo)
    for latents, wanted in zip(found, expected, strict=True):
        assert latents is not None
        torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        expected[2], published.audio.encode(torch.from_numpy(TONE)[None])[0], atol=1e-4, rtol=1e-4
    )
    folded = published.audio.encode(torch.from_numpy(LEFT.mean(0))[None])[0]
    assert not torch.allclose(expected[0], expected[1], atol=1e-2) and not torch.allclose(
        expected[0], folded, atol=1e-2
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_voices_are_heard_in_mono(tmp_path: Path, published: Codecs, channels: int) -> None:
    write_wav(tmp_path / "reference.wav", LEFT[:, :8000], RATE)
    own, named = (
        sound_row(tmp_path, LEFT, "own"),
        sound_row(tmp_path, LEFT, "named", meta={"reference_paths": ["reference.wav"]}),
    )
    voice = Voice()
    codecs = replace(published, audio=Loudness(channels), speaker=voice)
    for row in (own, named):
        encoded(tmp_path, [row], codecs)
    mono = torch.from_numpy(TONE)
    assert len(voice.heard) == 2
    for heard, wanted in zip(voice.heard, (mono[4000:8000], mono[:8000]), strict=True):
        torch.testing.assert_close(heard, wanted, atol=1e-6, rtol=0)


def test_units_of_another_number_of_channels_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "rows.jsonl", [sound_row(tmp_path, LEFT)])
    units, manifest = split(tmp_path / "rows.jsonl", 128), str(tmp_path / "rows.jsonl")
    mono, stereo = (
        SetEncoder(EncodeConfig(), "a", manifest, units, "id", Streams(), tmp_path / "a", count)
        for count in (1, 2)
    )
    assert "channels" not in mono.identity()
    mono.folder.mkdir()
    mono.claim()
    mono.claim()
    with pytest.raises(ValueError, match=r"channels: encoded with None, asked for 2; give --restart"):
        stereo.claim()
