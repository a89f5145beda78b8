"""Rotary position embeddings: one clock for video frames and audio tokens."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import audio_stream, conditioning, debug_model, video_stream

from pretrain.model.rope import audio_angles, axis_split, freqs_cis_of, rotate, rotate_pairs, video_freqs_cis

MODEL = debug_model()


@settings(max_examples=50, deadline=None)
@given(
    position=st.integers(0, 500),
    rate_v=st.floats(1, 60),
    rate_a=st.floats(1, 100),
    dim=st.sampled_from([16, 64, 128]),
)
def test_audio_position_turns_as_video_time(position: int, rate_v: float, rate_a: float, dim: int) -> None:
    temporal = axis_split(dim)[0] // 2
    angles = audio_angles(position + 1, rate_v / rate_a, dim, 1e4)[position]
    exponents = torch.arange(0, 2 * temporal, 2, dtype=torch.float64) / (2 * temporal)
    expected = position * rate_v / rate_a * 1e4**-exponents
    torch.testing.assert_close(angles[:temporal], expected, rtol=1e-6, atol=1e-6)
    assert not angles[temporal:].any()


def test_video_turns_of_a_whole_time_equal_audio_turns() -> None:
    video = video_freqs_cis(7, 2, 2, 128, 1e4).unflatten(0, (7, 4))[6, 0]
    audio = freqs_cis_of(audio_angles(26, 6 / 25, 128, 1e4))[25]
    torch.testing.assert_close(video, audio)  # 1 second is latent frame 6 and token 25


@settings(max_examples=20, deadline=None)
@given(place=st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3)))
def test_a_video_token_turns_by_its_frame_row_and_column(place: tuple[int, int, int]) -> None:
    freqs_cis = video_freqs_cis(5, 3, 4, 24, 1e4).view(5, 3, 4, 12)[place]
    for position, part, pairs in zip(place, freqs_cis.split([4, 4, 4]), (4, 4, 4), strict=True):
        exponents = torch.arange(pairs, dtype=torch.float64) / pairs
        torch.testing.assert_close(part, torch.exp(1j * position * 1e4**-exponents).to(torch.complex64))


@settings(max_examples=20, deadline=None)
@given(every=st.integers(1, 4), video_rate_hz=st.floats(0.5, 60))
def test_the_model_turns_audio_on_the_videos_clock(every: int, video_rate_hz: float) -> None:
    """With `every` audio tokens to a latent frame, token every * t rotates as the first patch of frame t."""
    video = replace(video_stream(frames=3), rate_hz=video_rate_hz, video_rate_hz=video_rate_hz)
    audio = replace(audio_stream(tokens=9), rate_hz=every * video_rate_hz, video_rate_hz=video_rate_hz)
    video_freqs_cis, audio_freqs_cis = MODEL._freqs_cis(video, audio)
    assert video_freqs_cis is not None and audio_freqs_cis is not None
    frames = video_freqs_cis.unflatten(0, (3, 4))[:, 0]
    torch.testing.assert_close(audio_freqs_cis[::every][:3], frames, atol=1e-6, rtol=0)
    alone = MODEL._freqs_cis(None, audio)[1]
    assert alone is not None and torch.equal(alone, audio_freqs_cis)


@settings(max_examples=10, deadline=None)
@given(factor=st.floats(0.1, 10))
def test_rates_count_by_their_ratio_and_do_count(factor: float) -> None:
    audio = audio_stream()
    with torch.no_grad():
        plain = MODEL(None, audio, conditioning()).audio
        scaled = replace(audio, rate_hz=25.0 * factor, video_rate_hz=6.0 * factor)
        both = MODEL(None, scaled, conditioning()).audio
        slower = MODEL(None, replace(audio, rate_hz=50.0), conditioning()).audio
    torch.testing.assert_close(both, plain, atol=1e-5, rtol=1e-5)
    assert (slower - plain).abs().max() > 1e-4


def test_plain_rotary_positions_know_no_rates() -> None:
    """The arm of `nava study claims`: audio token p turns by p, video as ever."""
    plain, audio = debug_model(), audio_stream(tokens=9)
    plain.args = replace(plain.args, rate_aware_rope=False)
    video = video_stream(frames=9)
    seen, heard = plain._freqs_cis(video, audio)
    slower = plain._freqs_cis(None, replace(audio, rate_hz=50.0))[1]
    assert heard is not None and slower is not None and torch.equal(heard, slower)
    aware = MODEL._freqs_cis(video, audio)
    assert seen is not None and aware[0] is not None and torch.equal(seen, aware[0])
    frames = seen.unflatten(0, (9, 4))[:, 0]
    torch.testing.assert_close(heard, frames, atol=1e-6, rtol=0)  # token 9 is where frame 9 is


def test_a_model_says_of_its_positions_only_what_older_ones_could_not_have() -> None:
    args = MODEL.args
    assert "rate_aware_rope" not in args.as_facts()
    plain = replace(args, rate_aware_rope=False)
    assert plain.as_facts() == {**args.as_facts(), "rate_aware_rope": False}


def test_rotation_turns_interleaved_pairs() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    turned = rotate(x, freqs_cis_of(torch.tensor([[torch.pi / 2, torch.pi]], dtype=torch.float64)))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.0, 1.0, 0.0, -2.0]), atol=1e-6, rtol=0)


def test_turning_pairs_spelled_out_equals_complex_numbers() -> None:
    freqs_cis, x = video_freqs_cis(3, 2, 2, 12, 1e4), torch.randn(2, 12, 3, 12)
    spelled = rotate_pairs(x.unflatten(-1, (-1, 2)), torch.view_as_real(freqs_cis)).flatten(-2)
    torch.testing.assert_close(spelled, rotate(x, freqs_cis), atol=1e-6, rtol=1e-6)
