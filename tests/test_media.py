"""Clips in and out: alignment of sound and picture, tags, resampling, and a named reason for every bad
file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.media import read as media
from pretrain.media.errors import MediaError
from pretrain.media.read import read_media, read_metadata
from pretrain.media.write import fit_length, write_mp4, write_wav

RATE = 16_000


def flash_and_click(at_frame: int, num_frames: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """A white frame and a short noise burst that begin at the same time."""
    frames = np.full((num_frames, 64, 64, 3), 30, np.uint8)
    frames[at_frame] = 220
    waveform = np.zeros(round(num_frames / 24 * RATE), np.float32)
    start = round(at_frame / 24 * RATE)
    burst = np.random.default_rng(0).standard_normal(320).astype(np.float32) * 0.2
    waveform[start : start + 320] = burst[: len(waveform) - start]
    return frames, waveform


@settings(max_examples=5, deadline=None)
@given(at_frame=st.integers(0, 23))
def test_sound_and_picture_stay_aligned(tmp_path_factory: pytest.TempPathFactory, at_frame: int) -> None:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    frames, waveform = flash_and_click(at_frame)
    write_mp4(path, frames, 24, waveform, RATE)
    back = read_media(path)
    assert back.frames is not None and back.waveform is not None
    assert back.frames.shape == frames.shape
    assert int(back.frames.mean((1, 2, 3)).argmax()) == at_frame
    sound = fit_length(back.waveform, len(waveform))
    lag = int(np.correlate(sound, waveform, "full").argmax()) - (len(waveform) - 1)
    assert abs(lag) <= RATE // 1000, f"{lag} samples off"


def test_mp4_keeps_pictures_sound_and_tags(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frames = np.repeat(np.repeat(rng.integers(0, 255, (9, 4, 4, 3), dtype=np.uint8), 16, 1), 16, 2)
    waveform = (0.3 * np.sin(2 * np.pi * 220 * np.arange(6000) / RATE)).astype(np.float32)
    write_mp4(
        tmp_path / "a.mp4", frames, 24, waveform, RATE, {"comment": "generated", "checkpoint_id": "abc"}
    )
    back = read_media(tmp_path / "a.mp4")
    assert back.frames is not None and back.waveform is not None
    assert np.mean((back.frames.astype(float) - frames) ** 2) < 60  # better than 30 dB
    assert np.mean((fit_length(back.waveform, 6000)[:5500] - waveform[:5500]) ** 2) < 1e-3 * np.mean(
        waveform**2
    )  # better than 30 dB
    tags = read_metadata(tmp_path / "a.mp4")
    assert tags["comment"] == "generated" and tags["checkpoint_id"] == "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_same_clip_same_file(tmp_path: Path) -> None:
    frames, waveform = flash_and_click(3)
    for name in "ab":
        write_mp4(tmp_path / f"{name}.mp4", frames, 24, waveform, RATE, {"comment": "x"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_other_rates_are_resampled_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    media._said.clear()
    frames = (
        np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None, None], 64, 1)
        .repeat(64, 2)
        .repeat(3, 3)
    )
    tone = (0.3 * np.sin(2 * np.pi * 300 * np.arange(44_100) / 44_100)).astype(np.float32)
    for name in "ab":
        write_mp4(tmp_path / f"{name}.mp4", frames, 12, np.tile(tone, 2), 44_100)
    with caplog.at_level(logging.WARNING):
        read_media(tmp_path / "a.mp4")
        back = read_media(tmp_path / "b.mp4")
    assert back.frames is not None and back.waveform is not None
    assert len(back.frames) == 48 and abs(len(back.waveform) - 2 * RATE) < 1600
    assert abs(int(back.frames[20].mean()) - 100) < 4  # 20/24 s is source frame 10
    crossings = np.diff(np.signbit(back.waveform[1000:17_000])).sum()
    assert abs(int(crossings) - 600) <= 2
    assert len(caplog.records) == 2 and "12" in caplog.text and "44100" in caplog.text


def test_several_channels_become_their_mean(tmp_path: Path) -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, RATE)
    back = read_media(tmp_path / "a.flac", want_video=False)
    assert back.waveform is not None and back.waveform.dtype == np.float32
    np.testing.assert_allclose(back.waveform, 0.2, atol=1e-4)


def tone(num_samples: int = 25 * 667) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / RATE)).astype(np.float32)


def heard(path: Path, channels: int, rate: int = RATE) -> np.ndarray:
    waveform = read_media(path, want_video=False, channels=channels, sample_rate_hz=rate).waveform
    assert waveform is not None and waveform.dtype == np.float32
    return waveform


@pytest.mark.parametrize("rate", [RATE, 8000])
@pytest.mark.parametrize("kind", ["mp4", "wav"])
def test_two_channels_stay_apart(tmp_path: Path, kind: str, rate: int) -> None:
    path, left = tmp_path / f"a.{kind}", np.stack([tone(), 0 * tone()])
    if kind == "mp4":
        write_mp4(path, flash_and_click(3)[0], 24, left, RATE)
    else:
        write_wav(path, left, RATE)
    stereo = heard(path, 2, rate)
    assert stereo.shape[0] == 2 and abs(stereo.shape[1] - left.shape[1] * rate / RATE) <= 2048
    assert abs(float(np.sqrt(np.mean(stereo[0, 1000:7000] ** 2))) - 0.3 / np.sqrt(2)) < 0.01
    assert float(np.abs(stereo[1]).max()) < 1e-3
    # an empty channel does not halve the other one
    np.testing.assert_allclose(heard(path, 1, rate), stereo[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["mp4", "wav"])
def test_mono_is_on_both_channels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "mp4":
        write_mp4(path, flash_and_click(3)[0], 24, tone(), RATE)
    else:
        write_wav(path, tone(), RATE)
    mono = heard(path, 1)
    assert mono.ndim == 1 and np.array_equal(heard(path, 2), np.stack([mono, mono]))


@pytest.mark.parametrize("num_channels", [1, 2, 9])
def test_channels_of_no_place_are_the_plain_mean_bit_for_bit(tmp_path: Path, num_channels: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (3000, num_channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    assert np.array_equal(heard(tmp_path / "a.wav", 1), samples.mean(axis=1))


@pytest.mark.parametrize(
    ("at", "sides"),
    list(enumerate([(1, 0), (0, 1), (0.5**0.5, 0.5**0.5), (0, 0), (0.5**0.5, 0), (0, 0.5**0.5)])),
)
def test_surround_is_mixed_to_its_sides(tmp_path: Path, at: int, sides: tuple[float, float]) -> None:
    """ITU-R BS.775 as FFmpeg has it: centre and rears 3 dB down and no LFE."""
    samples = np.zeros((3000, 6), np.float32)
    samples[:, at] = tone(3000)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    expected = np.outer(sides, tone(3000))
    np.testing.assert_allclose(heard(tmp_path / "a.wav", 2), expected, atol=1e-4)


def test_channels_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nine.wav", np.zeros((800, 9)), RATE)
    with pytest.raises(MediaError, match=r"nine.wav: 9 channels of unknown places .*; mix them down to two"):
        heard(tmp_path / "nine.wav", 2)
    bad = np.zeros((800, 6), np.float32)
    bad[7, 3] = np.nan  # in the channel that the mix leaves out
    soundfile.write(tmp_path / "nan.wav", bad, RATE, subtype="FLOAT")
    with pytest.raises(MediaError, match=r"nan.wav: .* are NaN or infinite"):
        heard(tmp_path / "nan.wav", 2)
    write_wav(tmp_path / "a.wav", tone(), RATE)
    with pytest.raises(ValueError, match="channels: valid are 1 and 2, got 3"):
        heard(tmp_path / "a.wav", 3)


def test_lengths_are_fitted_channel_by_channel() -> None:
    both = np.arange(6, dtype=np.float32).reshape(2, 3)
    for num_samples in (1, 3, 5):
        assert np.array_equal(
            fit_length(both, num_samples), np.stack([fit_length(row, num_samples) for row in both])
        )
    assert fit_length(both, 5).tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]


def test_picture_file_is_one_frame(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 77, np.uint8)).save(tmp_path / "a.png")
    frames = read_media(tmp_path / "a.png", want_audio=False).frames
    assert (
        frames is not None and frames.shape == (1, 64, 64, 3) and int(frames.min()) == int(frames.max()) == 77
    )


def broken(folder: Path, kind: str) -> Path:
    frames, waveform = flash_and_click(3)
    path = folder / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "corrupt":
        path.write_bytes(b"this is no film" * 100)
    elif kind == "truncated":
        write_mp4(
            path, np.random.default_rng(0).integers(0, 255, frames.shape, dtype=np.uint8), 24, waveform, RATE
        )
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "no audio":
        write_mp4(path, frames, 24, None, RATE)
    elif kind == "no video":
        path = folder / "bad.wav"
        write_wav(path, waveform, RATE)
    elif kind == "0 seconds":
        path = folder / "bad.wav"
        soundfile.write(path, np.zeros(0, np.float32), RATE)
    elif kind == "NaN":
        path = folder / "bad.wav"
        soundfile.write(path, np.array([0.0, np.nan], np.float32), RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    "kind", ["no such file", "empty", "corrupt", "truncated", "no audio", "no video", "0 seconds", "NaN"]
)
def test_bad_files_are_named_with_their_reason(tmp_path: Path, kind: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(MediaError) as caught:
        read_media(path, want_video=kind not in ("0 seconds", "NaN"))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and ";" in message
    assert kind in message or kind == "truncated"
    assert isinstance(caught.value, FileNotFoundError) == (kind == "no such file")


def test_nothing_half_written(tmp_path: Path) -> None:
    frames, waveform = flash_and_click(3)
    write_wav(tmp_path / "a.wav", waveform, RATE)
    before = (tmp_path / "a.wav").read_bytes()
    waveform[5] = np.nan
    with pytest.raises(ValueError, match=r"1 of .* samples are NaN"):
        write_wav(tmp_path / "a.wav", waveform, RATE)
    with pytest.raises(ValueError, match="NaN"):
        write_mp4(tmp_path / "a.mp4", frames, 24, waveform, RATE)
    with pytest.raises(ValueError, match="must be even"):
        write_mp4(tmp_path / "a.mp4", frames[:, :63], 24, None, RATE)
    assert (tmp_path / "a.wav").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [
        "a.wav"
    ]
