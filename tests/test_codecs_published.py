"""Published codecs on small random weights of the same classes, always through a codec folder: shapes, rates,
round trips, batches."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_parts import EXACT, VOCODER_BWE, WAN, write_codec, write_parts
from torch import Tensor

from pretrain.codecs.base import Codecs
from pretrain.codecs.load import load_codecs
from pretrain.codecs.published import ltx_audio, wan
from pretrain.codecs.published.ltx_mel import log_mel, mel_filters
from pretrain.codecs.published.wan import Tiles, WanVideoCodec
from pretrain.prompt import TIMBRE, parse, with_timbre_tokens
from pretrain.types import num_audio_tokens, num_video_latents

FEW = settings(max_examples=5, deadline=None)
TWO = "One man says <S>two<E> and  one woman\nsays <S>seven nine<E>."
PROMPTS = ["A wall.", TWO, "A man says: <S>hello<E>."]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def codecs(parts: Path) -> Codecs:
    write_codec(parts, parts / "codec")
    return load_codecs(parts / "codec")


@pytest.fixture(scope="module")
def vae(parts: Path) -> Any:
    return wan.load_wan(parts / "pipeline" / "vae", torch.float32, "cpu")


def pictures(batch: int, num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth moving colours, uint8 [B, T, H, W, 3]."""
    coarse = torch.rand(batch, 3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(num_frames, height, width), mode="trilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def sounds(batch: int, num_samples: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@FEW
@given(n=st.integers(0, 2), rows=st.integers(1, 2), cols=st.integers(1, 3))
def test_video_shapes(codecs: Codecs, n: int, rows: int, cols: int) -> None:
    frames = pictures(1, 1 + 4 * n, 16 * rows, 16 * cols)
    latents = codecs.video.encode(frames)
    assert (
        latents.shape == (1, 48, num_video_latents(1 + 4 * n), rows, cols) and latents.dtype == torch.float32
    )
    back = codecs.video.decode(latents)
    assert back.shape == frames.shape and back.dtype == torch.uint8 and back.device.type == "cpu"


def test_video_is_diffusers_model_normalised(codecs: Codecs, vae: Any) -> None:
    frames = pictures(1, 5, 32, 32)
    pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(pixels, return_dict=False)[0].mode()
        expected = vae.decode(raw, return_dict=False)[0]
    mean, std = (torch.tensor(WAN[name]).view(1, 48, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    latents = codecs.video.encode(frames)
    torch.testing.assert_close(latents * std + mean, raw, atol=1e-5, rtol=1e-5)
    shown = codecs.video.decode(latents).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    torch.testing.assert_close(shown, expected, atol=1.01 / 127.5, rtol=0)


def test_video_first_frame_is_alone_and_clips_do_not_mix(codecs: Codecs) -> None:
    frames = torch.cat([pictures(1, 5, 32, 32, seed) for seed in (1, 2)])
    latents = codecs.video.encode(frames)
    assert torch.equal(codecs.video.encode(frames), latents)
    assert torch.equal(codecs.video.encode(frames[1:]), latents[1:])
    torch.testing.assert_close(codecs.video.encode(frames[:, :1]), latents[:, :, :1], atol=1e-5, rtol=1e-5)
    assert torch.equal(codecs.video.decode(latents)[1:], codecs.video.decode(latents[1:]))


def test_video_in_bf16_is_near_fp32(parts: Path, codecs: Codecs) -> None:
    half = WanVideoCodec(partial(wan.load_wan, parts / "pipeline" / "vae", torch.bfloat16, "cpu"))
    frames = pictures(1, 5, 32, 32)
    exact, rough = codecs.video.encode(frames), half.encode(frames)
    assert rough.dtype == torch.float32
    assert float((rough - exact).square().mean().sqrt() / exact.std()) < 0.03
    difference = half.decode(exact).float() - codecs.video.decode(exact).float()
    assert float(difference.abs().mean()) < 3


def test_larger_tiles_are_nearer_to_the_whole_picture(codecs: Codecs, vae: Any) -> None:
    frames = pictures(1, 5, 64, 192)
    exact = codecs.video.encode(frames)
    whole = codecs.video.decode(exact).float()

    def errors(size: int) -> tuple[float, float]:
        """Of latents and of pixels, in standard deviations."""
        tiled = WanVideoCodec(lambda: vae, Tiles(size, 32), Tiles(size, 32))
        latents, shown = tiled.encode(frames), tiled.decode(exact).float()
        assert latents.shape == exact.shape and shown.shape == whole.shape
        return float((latents - exact).square().mean().sqrt() / exact.std()), float(
            (shown - whole).square().mean().sqrt() / whole.std()
        )

    found = {size: errors(size) for size in (64, 128, 192)}
    assert found[192] == (0.0, 0.0)  # fits: no tiles
    for small, large in zip(found[64], found[128], strict=True):
        assert 0 < large < small < 1
    with pytest.raises(ValueError, match="multiples of 32"):
        Tiles(100, 32)
    with pytest.raises(ValueError, match="overlap smaller"):
        Tiles(64, 64)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8), r"1 \+ 4n"),
        (torch.zeros(1, 5, 32, 24, 3, dtype=torch.uint8), "multiples of 16"),
        (torch.zeros(1, 5, 32, 32, 3), "uint8"),
    ],
)
def test_bad_frames_are_refused(codecs: Codecs, frames: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codecs.video.encode(frames)


@FEW
@given(num_samples=st.integers(1, 2600))
def test_audio_shapes(codecs: Codecs, num_samples: int) -> None:
    latents = codecs.audio.encode(sounds(1, num_samples))
    assert latents.shape == (1, 128, -(-num_samples // 640)) and latents.dtype == torch.float32
    back = codecs.audio.decode(latents)
    assert back.shape == (1, 640 * latents.shape[2]) and float(back.abs().max()) <= 1


def test_audio_rate(codecs: Codecs) -> None:
    assert num_audio_tokens(25, 24) == 26 and codecs.audio.encode(sounds(1, 26 * 640)).shape == (1, 128, 26)
    assert codecs.audio.sample_rate_hz == 16_000


def test_audio_is_diffusers_model_normalised_and_the_last_30_ms_are_silent(
    parts: Path, codecs: Codecs
) -> None:
    networks = ltx_audio.load_ltx(
        parts / "ltx" / "audio_vae", parts / "ltx" / "vocoder", torch.float32, "cpu"
    )
    sound = sounds(1, 5 * 640)
    with torch.no_grad():
        mel = log_mel(sound[:, None].expand(-1, 2, -1))
        assert mel.shape == (1, 2, 21, 64)
        raw = networks.vae.encode(mel, return_dict=False)[0].mode()[
            :, :, :5
        ]  # causal: the token of the frame after the end goes
        wave = networks.vocoder(networks.vae.decode(raw, return_dict=False)[0])
    packed = raw.permute(0, 2, 1, 3).reshape(1, 5, 128)
    expected = (packed - networks.vae.latents_mean) / networks.vae.latents_std
    latents = codecs.audio.encode(sound)
    torch.testing.assert_close(latents, expected.transpose(1, 2), atol=1e-4, rtol=1e-4)
    played = codecs.audio.decode_channels(latents)
    assert played.shape == (1, 2, 3200) and wave.shape == (1, 2, 17 * 240)
    from scipy.signal import resample_poly

    torch.testing.assert_close(
        played[..., :2720], torch.from_numpy(resample_poly(wave.numpy(), 2, 3, axis=-1)), atol=1e-4, rtol=0
    )
    assert not bool(played[..., 2720:].any()) and bool(played[..., 2600:2720].any())
    torch.testing.assert_close(codecs.audio.decode(latents), played.mean(1))


def test_audio_batches_stereo_and_determinism(codecs: Codecs) -> None:
    both = torch.stack([sounds(1, 1920, seed)[0] for seed in (1, 2)])
    latents = codecs.audio.encode(both)
    assert torch.equal(codecs.audio.encode(both), latents)
    torch.testing.assert_close(codecs.audio.encode(both[1:]), latents[1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        codecs.audio.decode(latents)[1:], codecs.audio.decode(latents[1:]), atol=1e-5, rtol=1e-4
    )
    twice = both[:1, None].expand(-1, 2, -1)
    assert torch.equal(
        codecs.audio.encode(twice), codecs.audio.encode(both[:1])
    )  # mono is the same on both channels
    assert not torch.allclose(codecs.audio.encode(both[None]), codecs.audio.encode(both[:1]), atol=1e-3)


def test_the_vocoder_with_bandwidth_extension(tmp_path: Path, parts: Path, codecs: Codecs) -> None:
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    LTX2VocoderWithBWE(**VOCODER_BWE).save_pretrained(tmp_path / "vocoder")
    assert ltx_audio.check_vocoder(tmp_path / "vocoder")
    codec = ltx_audio.LtxAudioCodec(
        partial(ltx_audio.load_ltx, parts / "ltx" / "audio_vae", tmp_path / "vocoder", torch.float32, "cpu")
    )
    latents = codecs.audio.encode(sounds(1, 1280))
    assert codec.decode_channels(latents).shape == (1, 2, 1280)  # 48 kHz inside
    assert torch.equal(codec.encode(sounds(1, 1280)), latents)


@pytest.mark.slow  # librosa compiles
def test_front_end_is_slaneys() -> None:
    import librosa

    expected = librosa.filters.mel(
        sr=16_000, n_fft=1024, n_mels=64, fmin=0, fmax=8000, htk=False, norm="slaney"
    )
    np.testing.assert_allclose(mel_filters().numpy(), expected, atol=1e-7)
    sound = sounds(1, 2000)[0]
    magnitudes = np.abs(
        librosa.stft(
            sound.numpy(), n_fft=1024, hop_length=160, window="hann", center=True, pad_mode="reflect"
        )
    )
    np.testing.assert_allclose(
        log_mel(sound).numpy(), np.log(np.maximum(expected @ magnitudes, 1e-5)).T, atol=1e-3
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(codecs: Codecs, bad: float) -> None:
    video, audio, sound = torch.zeros(1, 48, 1, 2, 2), torch.zeros(1, 128, 2), torch.zeros(1, 1600)
    for tensor in (video, audio, sound):
        tensor.view(-1)[3] = bad
    calls = (
        (codecs.video.decode, video),
        (codecs.audio.decode, audio),
        (codecs.audio.encode, sound),
        (codecs.speaker.embed, sound[0]),
    )
    for call, value in calls:
        with pytest.raises(ValueError, match=r"1 of .* NaN or infinite"):
            call(value)
    with pytest.raises(ValueError, match=r"\[B, 2, N\]"):
        codecs.audio.encode(torch.zeros(1, 3, 640))


def test_text_batching_and_padding_change_nothing(codecs: Codecs) -> None:
    encoded = codecs.text.encode([parse(text) for text in PROMPTS])
    assert encoded.states.shape[2] == codecs.text.width and encoded.states.dtype == torch.float32
    lengths = encoded.mask.sum(1).tolist()
    assert max(lengths) == encoded.states.shape[1] and len(set(lengths)) == 3
    for row, text in enumerate(PROMPTS):
        alone = codecs.text.encode([parse(text)])
        torch.testing.assert_close(encoded.states[row, : lengths[row]], alone.states[0], atol=1e-5, rtol=1e-5)
        assert not bool(encoded.states[row, lengths[row] :].any()) and bool(alone.mask.all())
    assert codecs.text.encode([]).states.shape == (0, 0, codecs.text.width)


def test_text_is_transformers_model_padded_to_512(parts: Path, codecs: Codecs) -> None:
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(parts / "pipeline" / "tokenizer")
    network = UMT5EncoderModel.from_pretrained(parts / "pipeline" / "text_encoder").eval()
    given = tokenizer(
        with_timbre_tokens(parse(PROMPTS[2])), padding="max_length", max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        expected = network(given["input_ids"], given["attention_mask"]).last_hidden_state[0]
    encoded = codecs.text.encode([parse(PROMPTS[2])])
    length = int(given["attention_mask"].sum())
    assert encoded.states.shape[1] == length
    torch.testing.assert_close(encoded.states[0], expected[:length], atol=1e-5, rtol=1e-5)
    assert given["input_ids"][0, encoded.speaker_positions[0, 0]] == tokenizer.convert_tokens_to_ids(TIMBRE)


@FEW
@given(words=st.lists(st.sampled_from(["one", "two", "seven nine", "hello"]), max_size=4))
def test_every_span_has_its_timbre_position(codecs: Codecs, words: list[str]) -> None:
    text = "A man says " + " and ".join(f"<S>{word}<E>" for word in words) + "."
    encoded = codecs.text.encode([parse(text), parse("A wall.")])
    positions = encoded.speaker_positions[0].tolist()
    assert (
        len(positions) == len(words)
        and positions == sorted(set(positions))
        and min(positions, default=0) >= 0
    )
    assert encoded.speaker_positions[1].tolist() == [-1] * len(words)


def test_long_and_empty_prompts_are_refused(codecs: Codecs) -> None:
    with pytest.raises(ValueError, match=r"prompt of \d{4} text tokens; give 1 to 512"):
        codecs.text.encode([parse("one " * 1000)])
    with pytest.raises(ValueError, match="prompt of 0 text tokens"):
        codecs.text.encode([parse("  ")])


def test_voice_hears_30_s_of_16_khz(codecs: Codecs) -> None:
    long = sounds(1, 31 * 16_000)[0]
    voice = codecs.speaker.embed(long)
    assert voice.shape == (192,) and codecs.speaker.name == "redimnet"
    torch.testing.assert_close(codecs.speaker.embed(long[: 30 * 16_000]), voice)
    assert not torch.allclose(codecs.speaker.embed(long[: 29 * 16_000]), voice)
    assert abs(float(voice.norm()) - 1) > 1e-3  # as the release gives it to the timbre token


@pytest.mark.parametrize("sound", [torch.zeros(16_000), torch.zeros(0), sounds(1, 400)[0]])
def test_references_without_a_voice_are_refused(codecs: Codecs, sound: Tensor) -> None:
    with pytest.raises(ValueError, match="reference sound"):
        codecs.speaker.embed(sound)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_as_on_the_cpu(parts: Path, codecs: Codecs, tmp_path: Path) -> None:
    write_codec(parts, tmp_path / "codec", dataclasses.replace(EXACT, device="cuda"))
    there, frames, sound = load_codecs(tmp_path / "codec"), pictures(1, 5, 32, 32), sounds(1, 3200)
    assert there.codec_id == codecs.codec_id
    torch.testing.assert_close(there.video.encode(frames), codecs.video.encode(frames), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(there.audio.encode(sound), codecs.audio.encode(sound), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(
        there.speaker.embed(sound[0]), codecs.speaker.embed(sound[0]), atol=2e-3, rtol=2e-3
    )
    ours, theirs = (part.text.encode([parse(TWO)]).states for part in (codecs, there))
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=2e-3)
