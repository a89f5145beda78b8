"""Containers: which streams, which way up, what is shown, and where sound goes; files made by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest

from pretrain.media.errors import MediaError
from pretrain.media.limits import MediaLimits
from pretrain.media.passing import PassingPictures
from pretrain.media.read import Media, probe, read_media

RATE = 16_000


def picture(level: int = 0) -> np.ndarray:
    """Four quarters of four levels, so that every turn differs."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16, :32], frame[:16, 32:], frame[16:, :32], frame[16:, 32:] = 40, 90, 140, 200
    return frame + np.uint8(level)


def write(
    path: Path,
    frames: list[np.ndarray],
    pts: list[int] | None = None,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    sounds: Sequence[tuple[np.ndarray, int]] = (),
    sound_codec: str = "pcm_s16le",
    sound_format: str = "s16",
    layout: str = "mono",
) -> Path:
    """Frames at `pts` (of 1/24000 s) and chunks of sound [C, N] at their sample times."""
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=24))
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.time_base = Fraction(1, 24_000)
        prepare(stream)
        audio = None
        if sounds:
            audio = cast(av.AudioStream, container.add_stream(sound_codec, rate=RATE, layout=layout))
        source = {3: "rgb24", 4: "rgba"}[frames[0].shape[2]]
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format=source)
            frame.pts, frame.time_base = (pts or range(0, 10**9, 1000))[index], Fraction(1, 24_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for samples, at in sounds:
            chunk = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T.reshape(1, -1)), format=sound_format, layout=layout
            )
            chunk.rate, chunk.pts, chunk.time_base = RATE, at, Fraction(1, RATE)
            assert audio is not None
            container.mux(audio.encode(chunk))
        if audio is not None:
            container.mux(audio.encode(None))
    return path


def own(path: Path, **options: object) -> Media:
    return read_media(path, fps=None, sample_rate_hz=None, want_video=None, want_audio=None, **options)  # type: ignore[arg-type]


def shown(path: Path) -> np.ndarray:
    frames = own(path).frames
    assert frames is not None
    return frames


TURNS = {
    (90, False, False): lambda frame: np.rot90(frame, 1),
    (180, False, False): lambda frame: np.rot90(frame, 2),
    (270, False, False): lambda frame: np.rot90(frame, 3),
    (0, True, False): lambda frame: frame[:, ::-1],
    (0, False, True): lambda frame: frame[::-1],
}


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_pictures_are_upright(tmp_path: Path, turn: tuple[int, bool, bool]) -> None:
    path = write(tmp_path / "a.mp4", [picture()] * 4, prepare=lambda one: one.set_display_rotation(*turn))
    expected, found = TURNS[turn](picture()), shown(path)[0]
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 6
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]


def test_other_turns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture()] * 4, prepare=lambda one: one.set_display_rotation(30))
    with pytest.raises(MediaError, match=r"a.mp4: pictures turned by -?(29|30) degrees"):
        own(path)


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(4, 3), Fraction(1, 2)])
def test_pixels_are_square(tmp_path: Path, aspect: Fraction) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    path = write(tmp_path / "a.mp4", [picture()] * 4, prepare=prepare)
    assert shown(path).shape[1:3] == (32, round(64 * aspect))
    assert probe(path).width == round(64 * aspect)


def test_hdr_and_other_sizes_are_refused(tmp_path: Path) -> None:
    def hdr(stream: av.VideoStream) -> None:
        stream.codec_context.color_trc = 16

    path = write(tmp_path / "hdr.mp4", [picture()] * 4, prepare=hdr)
    with pytest.raises(MediaError, match=r"hdr.mp4: HDR pictures \(PQ\); convert them to SDR"):
        own(path)


def test_transparent_video_is_laid_on_white(tmp_path: Path) -> None:
    clear = np.zeros((32, 64, 4), np.uint8)
    clear[8:24, 8:24] = (10, 20, 30, 255)
    path = write(tmp_path / "a.mov", [clear] * 3, codec="png", pix_fmt="rgba")
    frame = shown(path)[0]
    assert (frame[0, 0] == 255).all() and frame[16, 16].tolist() == [10, 20, 30]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_pictures_stay_at_their_times(tmp_path: Path, suffix: str) -> None:
    times = [0, 1, 2, 3, 10, 11, 12, 13, 14, 16, 18, 20]
    frames = [np.full((32, 64, 3), 10 + 10 * time, np.uint8) for time in times]
    media = own(write(tmp_path / f"a.{suffix}", frames, [1000 * time for time in times]))
    assert media.frames is not None and media.fps == 24.0
    levels = np.round((media.frames.mean((1, 2, 3)) - 10) / 10).astype(int).tolist()
    assert levels[:20] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 10, 11, 12, 13, 14, 14, 16, 16, 18, 18]
    assert media.mended["repeated_frames"] >= 6


def test_lost_sound_is_silence(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-9999, 9999, (1, RATE)).astype(np.int16)
    sounds = [(noise[:, at : at + 400], at) for at in range(0, RATE, 400) if not 4000 <= at < 8000]
    path = write(tmp_path / "a.mkv", [picture()] * 24, sounds=sounds)
    media, expected = own(path), noise[0] / 32768
    expected[4000:8000] = 0
    assert media.waveform is not None and abs(media.mended["silence_s"] - 0.25) < 0.002
    assert abs(len(media.waveform) - RATE) <= 16
    assert np.abs(media.waveform[:4000] - expected[:4000]).max() < 1e-6
    off = len(media.waveform) - RATE  # matroska counts milliseconds
    assert np.abs(media.waveform[8100 + off : 15_000 + off] - expected[8100:15_000]).max() < 1e-6


@pytest.mark.parametrize("kind", ["u8", "s16", "s32", "flt", "dbl"])
def test_sample_formats_have_one_scale(tmp_path: Path, kind: str) -> None:
    codecs = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "flt": "pcm_f32le", "dbl": "pcm_f64le"}
    wave = 0.5 * np.sin(np.arange(8000) * 0.05)
    whole = {"u8": wave * 128 + 128, "s16": wave * 2**15, "s32": wave * 2**31}.get(kind, wave)
    dtype = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}[kind]
    samples = (np.round(whole) if np.issubdtype(dtype, np.integer) else whole).astype(dtype)[None]
    path = write(
        tmp_path / "a.mkv",
        [picture()] * 12,
        sounds=[(samples, 0)],
        sound_codec=codecs[kind],
        sound_format=kind,
    )
    found = own(path).waveform
    assert found is not None and np.abs(found - wave).max() < (0.01 if kind == "u8" else 1e-4)


def test_channels_keep_their_level(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voice = rng.uniform(-0.5, 0.5, 8000).astype(np.float32)
    for layout, at in (
        ("5.1", {2: 1}),
        ("stereo", {1: 1}),
        ("stereo", {0: 1, 1: -1}),
        ("7.1", {2: 1}),
        ("5.1", {3: 1}),
    ):
        count = {"5.1": 6, "7.1": 8, "stereo": 2}[layout]
        samples = np.zeros((count, 8000), np.float32)
        for channel, sign in at.items():
            samples[channel] = sign * voice
        path = write(
            tmp_path / "a.mkv",
            [picture()] * 12,
            sounds=[(samples, 0)],
            sound_codec="pcm_f32le",
            sound_format="flt",
            layout=layout,
        )
        found = own(path).waveform
        assert found is not None and np.allclose(found, voice, atol=1e-5), (layout, at)


def test_limits_and_missing_streams_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture()] * 24)
    for limits, said in (
        (MediaLimits(pixels=1000), "64x32 pixels"),
        (MediaLimits(frames=10), "24 frames"),
        (MediaLimits(seconds=0.5), "1 s long"),
        (MediaLimits(decoded_bytes=10_000), ".*GiB when decoded"),
    ):
        with pytest.raises(MediaError, match=rf"a.mp4: {said}"):
            own(path, limits=limits)
    with pytest.raises(MediaError, match=r"a.mp4: no audio stream"):
        read_media(path)
    assert own(path).waveform is None


def test_a_jump_in_time_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", [picture()] * 3, [0, 1000, 24_000 * 3600 * 9])
    with pytest.raises(MediaError, match=r"a.mkv: .* at most"):
        own(path)


def test_tags_of_any_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture()] * 4)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as out:
        out.metadata["title"] = "caXX"
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    named = tmp_path / "name: %d.mp4"
    named.write_bytes((tmp_path / "b.mp4").read_bytes().replace(b"caXX", b"ca\xe9\xff"))
    assert len(shown(named)) == 4


def passed(path: Path, fps: float = 24.0) -> tuple[np.ndarray, dict[str, float]]:
    """The whole file by its passing pictures."""
    passing = PassingPictures(path)
    pictures = list(passing)
    showing = passing.shown.stretch(float(passing.shown.times[0]), passing.shown.num_ticks(fps), fps)
    return np.stack([pictures[index] for index in showing.index]), passing.shown.mended(showing)


def with_bframes(stream: av.VideoStream) -> None:
    stream.codec_context.max_b_frames = 2


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("lost", [range(0), range(10, 34)], ids=["whole", "hole"])
def test_pictures_that_pass_are_shown_as_those_of_the_clip(tmp_path: Path, suffix: str, lost: range) -> None:
    times = [time for time in range(48) if time not in lost]
    frames = [np.full((32, 64, 3), 5 + 5 * time, np.uint8) for time in times]
    path = write(tmp_path / f"a.{suffix}", frames, [1000 * time for time in times], prepare=with_bframes)
    media = read_media(path, fps=24.0, want_audio=None)
    assert media.frames is not None
    levels = np.round((media.frames.mean((1, 2, 3)) - 5) / 5).astype(int).tolist()
    assert levels[:48] == [max(time for time in times if time <= tick) for tick in range(48)]
    assert len(levels) <= 49  # how long the last one is shown, mp4 guesses from the mean rate
    found, mended = passed(path)
    assert np.array_equal(found, media.frames) and mended == media.mended


def test_pictures_without_a_picture_yet_are_not_shown(tmp_path: Path) -> None:
    passing = PassingPictures(write(tmp_path / "a.mp4", [picture()] * 4))
    with pytest.raises(RuntimeError, match="have not all passed"):
        _ = passing.shown
    next(iter(passing))
    with pytest.raises(RuntimeError, match="have not all passed"):
        _ = passing.shown


@pytest.mark.parametrize("suffix", ["mkv", "flv", "mp4"])
def test_pictures_of_a_file_that_is_cut_off_are_refused_as_the_clip_is(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (32, 64, 3), np.uint8) for _ in range(96)]
    noise = rng.integers(-9999, 9999, (1, 4 * RATE)).astype(np.int16)
    sounds = [(noise[:, at : at + 400], at) for at in range(0, 4 * RATE, 400)]
    whole = write(tmp_path / f"a.{suffix}", frames, sounds=sounds if suffix != "mp4" else ())
    content = whole.read_bytes()
    assert len(passed(whole)[0]) == 96
    short = tmp_path / f"short.{suffix}"
    short.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(MediaError) as refused:
        read_media(short, want_audio=None)
    with pytest.raises(MediaError) as passing:
        passed(short)
    assert str(passing.value) == str(refused.value)


def test_pictures_that_pass_need_no_memory_for_all_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [picture()] * 24)
    limits = MediaLimits(decoded_bytes=3 * 32 * 64 * 2)
    with pytest.raises(MediaError, match="when decoded"):
        read_media(path, want_audio=None, limits=limits)
    assert sum(1 for _ in PassingPictures(path, limits)) == 24
    with pytest.raises(MediaError, match="when decoded"):
        list(PassingPictures(path, MediaLimits(decoded_bytes=3 * 32 * 64 - 1)))
