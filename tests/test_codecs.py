"""The linear codecs and the frozen text and speaker encoders: round trips, standardised latents, determinism,
refusals."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.codecs.base import Codecs
from pretrain.codecs.folder import save_linear
from pretrain.codecs.linear import LinearAudioCodec, LinearVideoCodec, audio_blocks, video_blocks
from pretrain.codecs.load import load_codecs
from pretrain.codecs.mel import from_log_mel, log_mel
from pretrain.codecs.projection import LinearProjection, fit_projection, orthogonal_mixing
from pretrain.codecs.speaker import SpectralSpeakerEncoder, voice_statistics
from pretrain.codecs.text import HashedTextEncoder, piece_vector, split_pieces
from pretrain.data.corpus.bank import load_bank
from pretrain.prompt import SPEECH_END, SPEECH_START, TIMBRE, parse

PROMPT = "A woman with red hair on a blue background says: <S>seven<E>. The camera pans left."


@cache
def sounds() -> Tensor:
    """[80, 16640] one utterance of every word and voice."""
    rows = [utterances[0].waveform[:16_640] for utterances in load_bank().utterances.values()]
    return torch.stack([torch.from_numpy(np.pad(row, (100, 16_640 - len(row)))[:16_640]) for row in rows])


@cache
def clips() -> Tensor:
    """[12, 9, 32, 32, 3] smooth moving colours."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, 3, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(9, 32, 32), mode="trilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


@cache
def audio_codec(whitening: float = 0.5) -> LinearAudioCodec:
    return LinearAudioCodec(fit_projection(audio_blocks(sounds()).flatten(0, 1), 128, whitening))


@cache
def video_codec() -> LinearVideoCodec:
    return LinearVideoCodec(fit_projection(video_blocks(clips()).flatten(0, 3), 48, 0.5))


def write_codec(folder: Path) -> Codecs:
    statistics = torch.stack([voice_statistics(sound) for sound in sounds()[::4]])
    parts = {"video": video_codec().projection.tensors(), "audio": audio_codec().projection.tensors()}
    save_linear(
        folder, {**parts, "speaker": SpectralSpeakerEncoder.fit(statistics).tensors()}, {"width": 64}, 4
    )
    return load_codecs(folder)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(0, 6), rows=st.integers(1, 3), cols=st.integers(1, 3))
def test_video_shapes(n: int, rows: int, cols: int) -> None:
    frames = torch.zeros(2, 1 + 4 * n, 16 * rows, 16 * cols, 3, dtype=torch.uint8)
    latents = video_codec().encode(frames)
    assert latents.shape == (2, 48, 1 + n, rows, cols) and latents.dtype == torch.float32
    back = video_codec().decode(latents)
    assert back.shape == frames.shape and back.dtype == torch.uint8


@settings(max_examples=8, deadline=None)
@given(num_samples=st.integers(1, 6400))
def test_audio_shapes(num_samples: int) -> None:
    latents = audio_codec().encode(torch.randn(1, num_samples) * 0.1)
    assert latents.shape == (1, 128, -(-num_samples // 640))
    assert audio_codec().decode(latents).shape == (1, latents.shape[2] * 640)


@pytest.mark.parametrize("num_frames", [2, 4, 24])
def test_frames_not_one_plus_four_n_are_refused(num_frames: int) -> None:
    with pytest.raises(ValueError, match=r"1 \+ 4n"):
        video_codec().encode(torch.zeros(1, num_frames, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiples of 16"):
        video_codec().encode(torch.zeros(1, 5, 32, 30, 3, dtype=torch.uint8))


def test_video_round_trip_and_first_frame_is_alone() -> None:
    frames = clips()
    latents = video_codec().encode(frames)
    back = video_codec().decode(latents)
    assert float((back.float() - frames.float()).square().mean()) < 40  # better than 32 dB
    torch.testing.assert_close(video_codec().encode(frames[:, :1])[:, :, 0], latents[:, :, 0])


def test_audio_round_trip_keeps_spectrum_and_time() -> None:
    waveform = sounds()[:8]
    back = audio_codec().decode(audio_codec().encode(waveform))
    assert bool(back.isfinite().all()) and float(back.abs().max()) <= 1.0
    error = (log_mel(back) - log_mel(waveform)).square().mean().sqrt()
    assert float(error) < 0.35  # nepers, of about 6 between speech and silence
    envelope = [signal.unfold(1, 160, 160).square().mean(2).sqrt() for signal in (waveform, back)]
    lags = [
        float((envelope[0][:, 4:-4] * envelope[1].roll(shift, 1)[:, 4:-4]).sum()) for shift in range(-3, 4)
    ]
    assert int(np.argmax(lags)) == 3


def test_griffin_lim_is_deterministic_and_does_not_mix_clips() -> None:
    mel = log_mel(sounds()[:18])
    both = from_log_mel(mel, 3)
    torch.testing.assert_close(both[17:], from_log_mel(mel[17:], 3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_latents_are_standardised_per_channel(whitening: float) -> None:
    latents = audio_codec(whitening).encode(sounds())
    torch.testing.assert_close(latents.mean((0, 2)), torch.zeros(128), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2)), torch.ones(128), atol=1e-2, rtol=0)


def test_whitening_0_keeps_energies_and_1_equalises_them() -> None:
    vectors = torch.randn(4000, 48, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 48)
    kept, white = (fit_projection(vectors, 48, whitening) for whitening in (0.0, 1.0))
    torch.testing.assert_close(
        torch.linalg.eigvalsh(white.encode(vectors).T.cov()), torch.ones(48), atol=1e-2, rtol=0
    )
    scale = (kept.encode(vectors).square().sum(1) / (vectors - kept.mean).square().sum(1)).sqrt()
    torch.testing.assert_close(scale, scale.mean().expand(4000), rtol=0.1, atol=0)  # one global scale
    for projection in (kept, white):
        torch.testing.assert_close(projection.decode(projection.encode(vectors)), vectors, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [2, 12, 48, 128])
def test_mixing_is_orthogonal_and_even(size: int) -> None:
    matrix = orthogonal_mixing(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5))


def test_bad_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="whitening"):
        fit_projection(torch.randn(100, 8), 4, 1.5)
    with pytest.raises(ValueError, match="more clips"):
        fit_projection(torch.randn(4, 8), 4, 1.0)
    with pytest.raises(ValueError, match="more varied"):
        fit_projection(torch.ones(100, 8), 4, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(bad: float) -> None:
    video, audio, sound = torch.zeros(1, 48, 1, 1, 1), torch.zeros(1, 128, 2), torch.zeros(1, 640)
    for tensor in (video, audio, sound):
        tensor.view(-1)[3] = bad
    for call, value in (
        (video_codec().decode, video),
        (audio_codec().decode, audio),
        (audio_codec().encode, sound),
    ):
        with pytest.raises(ValueError, match=r"1 of .* NaN or infinite"):
            call(value)


def test_wild_latents_still_give_a_clip() -> None:
    assert bool(audio_codec().decode(torch.full((1, 128, 3), 1e4)).isfinite().all())
    assert video_codec().decode(torch.full((1, 48, 2, 1, 1), -1e4)).shape == (1, 5, 16, 16, 3)


def test_folder_round_trip_and_damage(tmp_path: Path) -> None:
    codecs = write_codec(tmp_path / "codec")
    assert codecs.codec_id == load_codecs(tmp_path / "codec").codec_id and codecs.text.width == 64
    torch.testing.assert_close(codecs.video.encode(clips()), video_codec().encode(clips()))
    with pytest.raises(FileNotFoundError, match="nava codec"):
        load_codecs(tmp_path / "nowhere")
    path = tmp_path / "codec" / "audio.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="weights are of codec"):
        load_codecs(tmp_path / "codec")
    path.write_bytes(data[:50])
    with pytest.raises(ValueError, match="damaged"):
        load_codecs(tmp_path / "codec")


def test_what_decodes_has_an_id_of_its_own(tmp_path: Path) -> None:
    first = write_codec(tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    changed = {**json.loads(config.read_text()), "griffin_lim_iterations": 7}
    config.write_text(json.dumps(changed))
    found = load_codecs(tmp_path / "codec")
    assert found.codec_id == first.codec_id and found.decoder_id != first.decoder_id
    assert len(found.decoder_id) == 16 and first.decoder_id == write_codec(tmp_path / "again").decoder_id


def test_missing_tensor_is_named() -> None:
    tensors = video_codec().projection.tensors()
    del tensors["decoder"]
    with pytest.raises(ValueError, match="x: no tensor decoder"):
        LinearProjection.from_tensors(tensors, "x")


def test_pieces() -> None:
    text = f"It's {SPEECH_START}{TIMBRE}ten<E>. 你好😀"
    assert split_pieces(text) == ["It", "'", "s", "<S>", TIMBRE, "ten", "<E>", ".", "你", "好", "😀"]


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=60).filter(lambda text: "<" not in text and split_pieces(text)))
def test_any_text_encodes_to_rows_of_mean_square_1(text: str) -> None:
    encoded = HashedTextEncoder(64).encode([parse(text), parse(PROMPT)])
    square = encoded.states.square().mean(-1)
    torch.testing.assert_close(square, encoded.mask.float(), atol=1e-4, rtol=0)  # and zero where padded
    assert encoded.speaker_positions[0].tolist() == [-1]


def test_batch_does_not_matter_and_timbre_positions() -> None:
    encoder = HashedTextEncoder(256)
    two = "One says <S>two<E> and one says <S>five one<E>."
    both = encoder.encode([parse(PROMPT), parse(two)])
    alone = HashedTextEncoder(256).encode([parse(two)])
    length = int(both.mask[1].sum())
    assert torch.equal(both.states[1, :length], alone.states[0]) and not bool(both.states[1, length:].any())
    pieces = split_pieces(two.replace(SPEECH_START, SPEECH_START + TIMBRE))
    assert [pieces[at] for at in both.speaker_positions[1].tolist()] == [TIMBRE, TIMBRE]
    assert both.speaker_positions[0].tolist()[1] == -1 and pieces.count(SPEECH_END) == 2


def test_words_are_nearly_orthogonal_yet_share_parts() -> None:
    words = load_bank().words
    vectors = np.stack([piece_vector(word, 256) for word in words])
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    others = cosine[~np.eye(len(words), dtype=bool)]
    assert float(np.abs(others).mean()) < 0.15 and float(others.max()) < 0.6
    assert float(piece_vector("walking", 256) @ piece_vector("walked", 256)) > 0.2
    assert np.array_equal(piece_vector("seven", 256), piece_vector("seven", 256))


def test_spoken_word_looks_the_same_wherever_the_span_stands() -> None:
    encoder = HashedTextEncoder(256)
    near, far = (
        encoder.encode([parse(text)])
        for text in ("He says <S>ten<E>.", "A tall old man with a blue hat slowly says <S>ten<E>.")
    )
    states = [encoded.states[0, int(encoded.speaker_positions[0, 0]) + 1] for encoded in (near, far)]
    assert torch.equal(*states)


def test_golden_text_checksum() -> None:
    states = HashedTextEncoder(256).encode([parse(PROMPT)]).states
    digest = hashlib.sha256((states * 100).round().to(torch.int16).numpy().tobytes()).hexdigest()
    assert digest[:16] == "f240316273b46bf7"


def test_prompts_without_tokens_or_too_long_are_refused() -> None:
    for text in ("   ", "word " * 600):
        with pytest.raises(ValueError, match="text tokens"):
            HashedTextEncoder(64).encode([parse(text)])


def test_voices_separate_over_different_words() -> None:
    bank = load_bank()
    keys = [(word, voice) for word, voice in bank.utterances if word in bank.words[:10]]
    statistics = torch.stack(
        [voice_statistics(torch.from_numpy(bank.utterances[key][1].waveform)) for key in keys]
    )
    encoder = SpectralSpeakerEncoder.fit(statistics)
    vectors = torch.stack([encoder.embed(torch.from_numpy(bank.utterances[key][1].waveform)) for key in keys])
    right = 0
    for row, (word, voice) in enumerate(keys):
        rest = {
            name: [i for i, (other, speaker) in enumerate(keys) if speaker == name and other != word]
            for name in bank.voices
        }
        means = {name: vectors[indices].mean(0) for name, indices in rest.items()}
        right += min(means, key=lambda name: float((vectors[row] - means[name]).square().sum())) == voice
    assert right / len(keys) > 0.97


@settings(max_examples=5, deadline=None)
@given(gain=st.floats(0.02, 1.0), rate=st.integers(0, 79))
def test_loudness_does_not_matter(gain: float, rate: int) -> None:
    torch.testing.assert_close(
        voice_statistics(sounds()[rate] * gain), voice_statistics(sounds()[rate]), atol=0.1, rtol=0
    )


def test_only_the_first_30_seconds_count_and_short_sounds_work() -> None:
    long = sounds()[0].repeat(40)
    torch.testing.assert_close(voice_statistics(long), voice_statistics(long[: 30 * 16_000]))
    assert voice_statistics(sounds()[0][2000:2100]).isfinite().all()


@pytest.mark.parametrize("sound", [torch.zeros(16_000), torch.zeros(0), torch.full((800,), float("nan"))])
def test_silent_or_broken_references_are_refused(sound: Tensor) -> None:
    with pytest.raises(ValueError, match="reference sound"):
        voice_statistics(sound)
