"""Frames, times and samples of 249 built files equal those that FFmpeg's own program reads.

FFmpeg is another build than PyAV's (imageio-ffmpeg's static binary). Frames are known by the number in their
picture; a frame is the right one within a millisecond; pixels may differ by rounding of the colour
conversion, samples of lossy codecs by rounding of the decoder.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from builders import CHANNELS, Source, number_of
from ffmpeg_reading import Built, Reading, on_timeline
from sources import ASPECTS, CUTS, EVEN, LOST, SOURCES, TURNED, UNEVEN

from pretrain.media.passing import PassingPictures
from pretrain.media.read import probe, read_media

MILLISECOND = 1e-3
PIXEL_LEVELS = 2.0  # mean difference of a picture, of 255
SAMPLE_LEVELS = 2e-4  # of full scale
PACKET_SAMPLES = 2048  # an encoder's padding at the end
EXACT_SOUNDS = ("flac", "alac", "pcm_s16", "pcm_s24", "pcm_f32", "pcm_u8")


def named(sources: list[Source]) -> list:
    return [pytest.param(source, id=source.name) for source in sources]


def numbers(frames: np.ndarray | None) -> list[int]:
    assert frames is not None and frames.dtype == np.uint8
    return [number_of(frame) for frame in frames]


def shown(times_s: np.ndarray, at_s: float, fps: float) -> set[int]:
    """Positions of the frames that may be shown at a tick of `fps`, within a millisecond.

    A frame is shown from its time, rounded to the nearest tick, until the next one's; where frames are denser
    than ticks, the nearest is.
    """
    from_s = times_s[1:] - np.minimum(np.diff(times_s), 1 / fps) / 2
    return {int((from_s <= at_s + slack).sum()) for slack in (-MILLISECOND, MILLISECOND)}


def check_frames_at(frames: np.ndarray | None, fps: float, reading: Reading) -> None:
    """Output frame k is FFmpeg's frame at k / fps after the first; none is missing at the end."""
    assert reading.frame_times_s is not None
    true, found = numbers(reading.frames), numbers(frames)
    times = reading.frame_times_s - reading.frame_times_s[0]
    for position, number in enumerate(found):
        allowed = {true[frame] for frame in shown(times, position / fps, fps)}
        assert number in allowed, (
            f"frame {position} of {found}: one of {allowed} is shown at {position / fps:.3f} s"
        )
    assert abs(len(found) - (times[-1] + np.median(np.diff(times))) * fps) <= 1.01 + fps / 24


def is_even(reading: Reading) -> bool:
    assert reading.frame_times_s is not None
    gaps = np.diff(reading.frame_times_s)
    return bool(gaps.max() < 1.3 * gaps.min() + 2 * MILLISECOND)


def test_at_least_200_files_are_held_against_ffmpeg() -> None:
    assert len(SOURCES) >= 200 and len({source.name for source in SOURCES}) == len(SOURCES)


@pytest.mark.parametrize("source", named(EVEN))
def test_frames_times_and_samples_equal_ffmpegs(built: Built, source: Source) -> None:
    path, reading = built(source)
    if source.video is not None:
        media = read_media(path, fps=None, want_audio=False)
        assert numbers(reading.frames) == list(range(source.num_frames))
        assert media.fps == pytest.approx(float(Fraction(source.fps)), rel=2e-3)
        if is_even(reading):
            assert numbers(media.frames) == numbers(reading.frames)
            check_pixels(media.frames, reading)
        else:  # avi's muxer leaves an empty place before the second frame where the sound begins earlier
            check_frames_at(media.frames, media.fps, reading)
        check_frames_at(read_media(path, fps=10.0, want_audio=False).frames, 10.0, reading)
        check_passing(path, media.fps)
        check_passing(path, 10.0)
    if source.audio is not None:
        check_sound(path, source, reading)


@pytest.mark.parametrize("source", named([*UNEVEN, *CUTS]))
def test_frames_of_uneven_times_are_shown_at_their_times(built: Built, source: Source) -> None:
    path, reading = built(source)
    for fps in (None, 24.0, 10.0):
        media = read_media(path, fps=fps)
        check_frames_at(media.frames, media.fps, reading)
    check_passing(path, 24.0)
    check_sound(path, source, reading)


@pytest.mark.parametrize("source", named(LOST))
def test_lost_sound_leaves_silence_in_its_place(built: Built, source: Source) -> None:
    path, reading = built(source)
    assert reading.sample_starts is not None and reading.piece_sizes is not None
    ends = reading.sample_starts + reading.piece_sizes
    assert (reading.sample_starts[1:] - ends[:-1]).max() > 0.05 * reading.sample_rate_hz  # there is a hole
    check_sound(path, source, reading)
    assert read_media(path).mended


@pytest.mark.parametrize("source", named(TURNED))
def test_turned_and_mirrored_pictures_are_upright(built: Built, source: Source) -> None:
    path, reading = built(source)
    media, info = read_media(path, fps=None), probe(path)
    assert (info.height, info.width) == (source.height, source.width)
    assert numbers(media.frames) == numbers(reading.frames) == list(range(source.num_frames))
    check_pixels(media.frames, reading)


@pytest.mark.parametrize("source", named(ASPECTS))
def test_pixels_become_square(built: Built, source: Source) -> None:
    path, reading = built(source)
    media, info = read_media(path, fps=None), probe(path)
    assert media.frames is not None and (info.height, info.width) == media.frames.shape[1:3]
    pixel = Fraction(source.name.removeprefix("aspect_").split(".")[0].replace("_", "/"))
    assert info.height and info.width
    assert info.width / info.height == pytest.approx(source.width * pixel / source.height, rel=0.02)
    assert numbers(media.frames) == numbers(reading.frames)


def check_passing(path: Path, fps: float) -> None:
    """Pictures that pass one by one are shown at the ticks at which those of the whole clip are."""
    media, passing = read_media(path, fps=fps, want_audio=False), PassingPictures(path)
    pictures = list(passing)
    showing = passing.shown.stretch(float(passing.shown.times[0]), passing.shown.num_ticks(fps), fps)
    assert media.frames is not None and len(showing.index) == len(media.frames)
    assert all(
        (pictures[index] == frame).all() for index, frame in zip(showing.index, media.frames, strict=True)
    )
    assert passing.shown.mended(showing) == media.mended


def check_pixels(frames: np.ndarray | None, reading: Reading) -> None:
    assert frames is not None and reading.frames is not None and frames.shape == reading.frames.shape
    difference = np.abs(frames.astype(np.int16) - reading.frames).mean(axis=(1, 2, 3))
    assert difference.max() <= PIXEL_LEVELS


def check_sound(path: Path, source: Source, reading: Reading) -> None:
    """Two channels at the file's own rate equal FFmpeg's, sample by sample from the first picture on."""
    zero_s = 0.0
    if source.name.startswith("bframes") and source.name.endswith(".avi"):
        assert reading.frame_times_s is not None and reading.frame_times_s[0] > MILLISECOND
        # FFmpeg's program shows an AVI's pictures later by those that the decoder holds back, without its
        # sound (test_media_twins.test_pictures_of_avi_stay_with_their_sound)
    elif reading.frame_times_s is not None:
        zero_s = float(reading.frame_times_s[0])
    elif reading.sample_starts is not None and len(reading.sample_starts):
        zero_s = float(reading.sample_starts[0]) / reading.sample_rate_hz
    true = on_timeline(reading, zero_s)
    media = read_media(path, fps=None, sample_rate_hz=None, want_video=source.video is not None, channels=2)
    assert media.waveform is not None and media.sample_rate_hz == source.sample_rate_hz
    if CHANNELS[source.layout] > 2:
        return  # how channels are mixed is held in test_media_channels
    true = np.broadcast_to(true, (2, true.shape[1]))
    assert abs(true.shape[1] - media.waveform.shape[1]) <= PACKET_SAMPLES
    exact = any(codec in (source.audio or ("", ""))[1] for codec in EXACT_SOUNDS)
    tolerance = 1e-6 if exact else SAMPLE_LEVELS
    assert difference_within_a_millisecond(media.waveform, true, media.sample_rate_hz) <= tolerance


def difference_within_a_millisecond(heard: np.ndarray, true: np.ndarray, sample_rate_hz: int) -> float:
    """The largest difference of [C, N] and [C, M] at the lag of at most a millisecond that fits best."""
    most = math.ceil(MILLISECOND * sample_rate_hz)
    found = []
    for lag in sorted(range(-most, most + 1), key=abs):
        here, there = heard[:, max(0, lag) :], true[:, max(0, -lag) :]
        both = min(here.shape[1], there.shape[1])
        found.append(float(np.abs(here[:, :both] - there[:, :both]).max()))
        if found[-1] < SAMPLE_LEVELS:
            break
    return min(found)
