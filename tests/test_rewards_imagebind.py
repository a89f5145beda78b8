"""ImageBind's front end against slow derivations, and its score with a model whose embeddings are known."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewards.semantic.fbank import fbank, mel_filters
from rewards.semantic.imagebind import ImageBindScore, pieces, sound_views, video_views
from rewards.types import Clip

RATE = 16_000


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def film(num_frames: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def slow_fbank(waveform: np.ndarray, num_mels: int) -> np.ndarray:
    """Sums over samples and bins, written from Kaldi's definition alone."""
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / 399) for n in range(400)]
    mel = [1127 * math.log(1 + k * RATE / 512 / 700) for k in range(256)]
    low, high = 1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 8000 / 700)
    step = (high - low) / (num_mels + 1)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(256), np.arange(400)) / 512)
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        samples = [float(x) for x in waveform[start : start + 400]]
        mean = sum(samples) / 400
        samples = [x - mean for x in samples]
        sharp = [samples[0] * 0.03] + [samples[n] - 0.97 * samples[n - 1] for n in range(1, 400)]
        powers = np.abs(waves @ np.array([a * b for a, b in zip(sharp, window, strict=True)])) ** 2
        row = []
        for m in range(num_mels):
            left, centre, right = low + m * step, low + (m + 1) * step, low + (m + 2) * step
            weights = [(x - left) / step if x <= centre else (right - x) / step for x in mel]
            energy = sum(w * p for w, p, x in zip(weights, powers, mel, strict=True) if left < x < right)
            row.append(math.log(max(energy, 2**-23)))
        rows.append(row)
    return np.array(rows)


def test_fbank_equals_sums_over_samples_and_bins():
    waveform = noise(1000)
    waveform[600:] = 0.5  # a constant is nothing once the mean is gone: the floor
    np.testing.assert_allclose(fbank(waveform, 24), slow_fbank(waveform, 24), atol=1e-4)
    assert fbank(np.full(400, 0.5, np.float32), 24).max() == pytest.approx(math.log(2**-23), abs=1e-6)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_fbank_equals_what_transformers_computes_for_the_audio_spectrogram_transformer():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(
        257, 128, 20, 8000, RATE, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    other = spectrogram(
        noise(32_000),
        window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=2**-23,
        remove_dc_offset=True,
    )
    assert fbank(noise(32_000)).shape == (198, 128)
    np.testing.assert_allclose(fbank(noise(32_000)), other.T, atol=2e-3)


def test_filters_are_triangles_that_overlap_to_one():
    filters = mel_filters(40)
    assert filters.shape == (257, 40) and filters[0].max() == 0 and filters[-1].max() == 0
    inside = filters.sum(axis=1)[2:240]  # between the first and the last centre
    np.testing.assert_allclose(inside[2:], 1.0, atol=1e-9)


@given(st.integers(1, 300), st.integers(2, 8))
def test_pieces_are_spread_evenly_and_the_last_ends_with_the_clip(tenths, count):
    duration = Fraction(tenths, 10)
    starts = pieces(duration, count)
    assert starts[0] == 0 and len(starts) == count
    assert {b - a for a, b in itertools.pairwise(starts)} == {max(duration - 2, Fraction(0)) / (count - 1)}
    assert starts[-1] == max(duration - 2, 0)


def test_sound_is_three_pieces_at_their_places():
    waveform = noise(6 * RATE + 7)
    views = sound_views(waveform)
    assert views.shape == (3, 1, 128, 204) and views.dtype == torch.float32
    middle = (6 * RATE + 7 - 2 * RATE) // 2
    for view, start in zip(views, (0, middle, 4 * RATE + 7), strict=True):
        piece = waveform[start : start + 2 * RATE]
        expected = (fbank(piece - piece.mean()).T + 4.268) / 9.138
        np.testing.assert_allclose(view[0, :, :198], expected, atol=1e-5)
        np.testing.assert_allclose(view[0, :, 198:], 4.268 / 9.138, atol=1e-6)


def test_short_sound_is_three_times_the_same_piece():
    views = sound_views(noise(RATE))
    np.testing.assert_array_equal(views[0], views[2])
    assert (views[0, 0, :, 98:] == views[0, 0, 0, 98]).all()


def test_video_frames_are_the_first_and_last_of_each_piece():
    frames = np.repeat(np.arange(145, dtype=np.uint8)[:, None, None, None], 3, axis=3) * np.ones(
        (1, 32, 32, 1), np.uint8
    )
    views = video_views(frames, 24.0)
    assert views.shape == (15, 3, 2, 224, 224)
    red = views[::3, 0, :, 0, 0] * 0.26862954 + 0.48145466
    starts = [Fraction(97, 24) * i / 4 for i in range(5)]  # 145 frames last 6.04 s
    expected = [[math.ceil(24 * start), math.ceil(24 * (start + 2)) - 1] for start in starts]
    assert torch.round(red * 255).long().tolist() == expected
    assert expected[-1] == [97, 144]


@pytest.mark.parametrize(("height", "width", "axis"), [(40, 80, 2), (80, 40, 1), (33, 50, 2)])
def test_crops_lie_along_the_longer_side(height, width, axis):
    ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, :] if axis == 2 else ramp[:, None], (height, width))
    frames = np.repeat(np.repeat(picture[None, ..., None], 3, axis=3), 4, axis=0)
    views = video_views(frames, 2.0)[:3, 0, 0]
    means = [float(view.mean()) for view in views]
    assert means[0] < means[1] < means[2]
    assert means[1] == pytest.approx((means[0] + means[2]) / 2, abs=0.03)
    assert (views.std(dim=axis) > views.std(dim=3 - axis).max()).all()


def test_square_pictures_give_equal_crops():
    views = video_views(film(3), 1.0)
    np.testing.assert_array_equal(views[0], views[1])
    np.testing.assert_array_equal(views[0], views[2])


class Loudness:
    """Embeds by means that a test can predict: brightness turns the picture's vector, loudness the sound's
    (times 20)."""

    def embed_vision(self, views):
        angle = views.mean(dim=(1, 2, 3, 4, 5))
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def embed_audio(self, mels):
        angle = mels.mean(dim=(1, 2, 3, 4))
        return 20 * torch.stack([angle.cos(), angle.sin()], dim=1)


def clip(seed: int, seconds: float = 2.5) -> Clip:
    return Clip(
        (seed + 1) * noise(round(seconds * RATE), seed),
        RATE,
        frames=film(12, seed=seed) // (seed + 1),
        fps=6.0,
    )


def test_score_is_the_cosine_whatever_the_scale():
    one = clip(0)
    assert one.frames is not None and one.waveform is not None
    angles = video_views(one.frames, 6.0).mean() - sound_views(one.waveform).mean()
    assert ImageBindScore(Loudness()).score([one])[0].value == pytest.approx(
        math.cos(float(angles)), abs=1e-5
    )


def test_batch_order_size_and_channels_do_not_matter():
    scorer, clips = ImageBindScore(Loudness()), [clip(seed, 1.0 + seed) for seed in range(5)]
    batch = [score.value for score in scorer.score(clips)]
    np.testing.assert_allclose([score.value for score in scorer.score(clips[::-1])], batch[::-1], atol=1e-5)
    np.testing.assert_allclose([scorer.score([one])[0].value for one in clips], batch, atol=1e-5)
    assert len({round(value, 4) for value in batch}) == 5
    stereo = np.stack([noise(RATE), noise(RATE, 1)])
    pair = [Clip(sound, RATE, frames=film(4), fps=4.0) for sound in (stereo, stereo.mean(axis=0))]
    values = [score.value for score in scorer.score(pair)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Clip(noise(RATE), RATE), "no frames"),
        (Clip(noise(RATE), RATE, frames=film(1)), "1 frame"),
        (Clip(noise(RATE), RATE, frames=np.zeros((4, 32, 32, 3), np.uint8)), "black"),
        (Clip(np.zeros(RATE, np.float32), RATE, frames=film(4)), "silent"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(bad, reason):
    scores = ImageBindScore(Loudness()).score([bad, clip(0)])
    assert math.isnan(scores[0].value) and reason in scores[0].reason
    assert math.isfinite(scores[1].value)


def test_a_broken_model_raises():
    class Broken(Loudness):
        def embed_audio(self, mels):
            return torch.full((len(mels), 2), math.nan)

    with pytest.raises(ValueError, match="no finite cosine"):
        ImageBindScore(Broken()).score([clip(0)])
