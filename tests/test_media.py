"""Clips in and out: alignment of sound and picture, tags, resampling, and a named reason for every bad file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.codecs import media
from pretrain.codecs.media import MediaError, fit_length, read_media, read_metadata, write_mp4, write_wav

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
    write_mp4(tmp_path / "a.mp4", frames, 24, waveform, RATE, {"comment": "generated", "checkpoint_id": "abc"})
    back = read_media(tmp_path / "a.mp4")
    assert back.frames is not None and back.waveform is not None
    assert np.mean((back.frames.astype(float) - frames) ** 2) < 60  # better than 30 dB
    assert np.mean((fit_length(back.waveform, 6000)[:5500] - waveform[:5500]) ** 2) < 1e-3 * np.mean(waveform**2)  # better than 30 dB
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
    frames = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None, None], 64, 1).repeat(64, 2).repeat(3, 3)
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


def test_picture_file_is_one_frame(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 77, np.uint8)).save(tmp_path / "a.png")
    frames = read_media(tmp_path / "a.png", want_audio=False).frames
    assert frames is not None and frames.shape == (1, 64, 64, 3) and int(frames.min()) == int(frames.max()) == 77


def broken(folder: Path, kind: str) -> Path:
    frames, waveform = flash_and_click(3)
    path = folder / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "corrupt":
        path.write_bytes(b"this is no film" * 100)
    elif kind == "truncated":
        write_mp4(path, np.random.default_rng(0).integers(0, 255, frames.shape, dtype=np.uint8), 24, waveform, RATE)
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


@pytest.mark.parametrize("kind", ["no such file", "empty", "corrupt", "truncated", "no audio", "no video", "0 seconds", "NaN"])
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
    assert (tmp_path / "a.wav").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a.wav"]
