"""Files with trouble in their times or tracks read as their twins, the same content without the trouble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import AAC, H264, Source, build, ffmpeg, lag_s, number_of, sound
from sources import AUDIO, VIDEO

from pretrain.media.errors import MediaError
from pretrain.media.read import probe, read_media

RATE = 16_000


def numbers(frames: np.ndarray | None) -> list[int]:
    assert frames is not None
    return [number_of(frame) for frame in frames]


def mono(path: Path, **options: object) -> np.ndarray:
    waveform = read_media(path, sample_rate_hz=None, want_video=False, **options).waveform  # type: ignore[arg-type]
    assert waveform is not None and waveform.ndim == 1
    return waveform


def level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize(
    "lost",
    [r"gt(n\,23)*mod(n\,2)", r"between(n\,20\,33)", r"lt(n\,24)*mod(n\,2)", r"gt(n\,40)*not(eq(n\,47))"],
    ids=["half rate later", "hole", "half rate first", "nearly still end"],
)
def test_lost_pictures_leave_the_others_where_they_were(tmp_path: Path, suffix: str, lost: str) -> None:
    video, audio = (VIDEO["vp8"], AUDIO["opus"]) if suffix == "webm" else (H264, AAC)
    rate = 48_000 if suffix == "webm" else RATE
    source = Source(
        f"a.{suffix}", video, audio, num_frames=48, sample_rate_hz=rate, filters=(f"select=not({lost})",)
    )
    path = build(source, tmp_path)
    media = read_media(path)
    found = numbers(media.frames)
    kept = sorted({number for number in found})
    # a picture stays until half a tick before the next one
    held = [max(number for number in kept if number <= tick) for tick in range(len(found))]
    assert abs(len(found) - 48) <= 1 and found == held
    assert media.waveform is not None
    assert abs(lag_s(media.waveform, sound(2.0, RATE)[0], RATE)) < 2e-3 or rate != RATE
    assert media.mended


def test_an_even_file_is_not_said_to_be_mended(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv", "mov", "ts"):
        assert not read_media(build(Source(f"a.{suffix}"), tmp_path)).mended
    assert not read_media(build(Source("a.avi", audio=("-c:a", "pcm_s16le")), tmp_path)).mended
    # for the priming of AAC, FFmpeg leaves two places empty behind the first picture
    assert read_media(build(Source("b.avi"), tmp_path)).mended == {"repeated_frames": 2}


@pytest.mark.parametrize("lost", ["0", r"between(n\,20\,33)"], ids=["whole", "hole"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_pictures_of_avi_stay_with_their_sound(tmp_path: Path, codec: str, lost: str) -> None:
    """B-frames come out of the decoder late, and an AVI has no times at which they are shown."""
    video = ("-c:v", codec, "-bf", "2", "-pix_fmt", "yuv420p", "-b:v", "2M")
    pcm = ("-c:a", "pcm_s16le")
    filters = (f"select=not({lost})",)
    path = build(Source("a.avi", video, pcm, num_frames=48, filters=filters), tmp_path)
    media = read_media(path)
    found = numbers(media.frames)
    kept = sorted({number for number in found})
    held = [max(number for number in kept if number <= tick) for tick in range(len(found))]
    assert found == held and abs(len(found) - 48) <= 1 and len(kept) == (48 if lost == "0" else 34)
    assert media.waveform is not None
    assert abs(lag_s(media.waveform, sound(2.0, RATE)[0], RATE)) < 2e-3


def test_a_cover_picture_is_not_the_clip(tmp_path: Path) -> None:
    clip = build(Source("clip.mp4"), tmp_path)
    ffmpeg("-f", "lavfi", "-i", "color=red:size=320x320", "-frames:v", "1", tmp_path / "cover.png")
    for suffix in ("mp4", "mkv", "mov"):
        path = tmp_path / f"covered.{suffix}"
        order = ("-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic")
        ffmpeg("-i", clip, "-i", tmp_path / "cover.png", *order, path)
        assert numbers(read_media(path).frames) == list(range(24))
        assert (probe(path).height, probe(path).width, round(probe(path).fps or 0)) == (64, 96, 24)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_default_sound_track_is_taken(tmp_path: Path, suffix: str, default: int) -> None:
    clip = build(Source("clip.mp4"), tmp_path)
    path = tmp_path / f"two.{suffix}"
    other = ("-f", "lavfi", "-i", f"anoisesrc=duration=1:sample_rate={RATE}:amplitude=0.3:seed=3")
    maps = ("-map", "0:v", "-map", "1:a", "-map", "0:a") if default else ("-map", "0", "-map", "1:a")
    flags = [f"-disposition:a:{turn}", "default"] if (turn := default) else ["-disposition:a:0", "default"]
    flags += [f"-disposition:a:{1 - default}", "0"]
    ffmpeg("-i", clip, *other, *maps, "-c:v", "copy", *AAC, *flags, path)
    true = sound(1.0)[0]
    heard = mono(path)[: len(true)]
    assert np.corrcoef(heard, true[: len(heard)])[0, 1] > 0.9


def test_opposite_channels_do_not_cancel(tmp_path: Path) -> None:
    opposite = Source("a.mp4", layout="stereo", sound_filters=("pan=stereo|c0=c0|c1=-1*c0",))
    straight = Source("b.mp4", layout="stereo", sound_filters=("pan=stereo|c0=c0|c1=c0",))
    loud, twin = mono(build(opposite, tmp_path)), mono(build(straight, tmp_path))
    assert level_db(loud) == pytest.approx(level_db(twin), abs=1.0)


SIDES = ("FL", "FR", "FC", "LFE", "BL", "BR")


@pytest.mark.parametrize("speaker", [0, 1, 2])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "wav"])
def test_speech_in_one_channel_of_six_keeps_its_level(tmp_path: Path, suffix: str, speaker: int) -> None:
    """Within 3 dB of FFmpeg's own mono of the same file, scaled to the same peak gain."""
    one = "|".join(f"c{place}={'c0' if place == speaker else '0*c0'}" for place in range(6))
    audio = {"mp4": AAC, "mkv": AUDIO["flac"], "mov": AUDIO["s16le"], "wav": AUDIO["s16le"]}[suffix]
    video = None if suffix == "wav" else H264
    path = build(Source(f"a.{suffix}", video, audio, sound_filters=(f"pan=5.1|{one}",)), tmp_path)
    found = level_db(mono(path))
    true = level_db(sound(1.0)[0])
    assert true - 6.5 < found < true + 0.5  # the centre as it is, a side as one of two


@pytest.mark.parametrize("codec", ["u8", "s16le", "s24le", "s32le", "f32le", "f64le", "mulaw", "alac"])
@pytest.mark.parametrize("suffix", ["mov", "mkv", "wav", "avi"])
def test_sample_formats_have_one_scale(tmp_path: Path, suffix: str, codec: str) -> None:
    if codec == "alac" and suffix in ("wav", "avi"):
        pytest.skip("no such file")
    path = build(Source(f"a.{suffix}", None, AUDIO[codec]), tmp_path)
    true = sound(1.0)[0]
    step = {"u8": 1 / 128, "mulaw": 1 / 32}.get(codec, 1 / 32_768)
    np.testing.assert_allclose(mono(path)[: len(true)], true, atol=1.01 * step)


def test_a_seven_point_one_file_is_read(tmp_path: Path) -> None:
    for suffix, audio in (("mp4", AAC), ("mkv", AUDIO["flac"]), ("mov", AUDIO["s16le"])):
        path = build(Source(f"a.{suffix}", audio=audio, layout="7.1"), tmp_path)
        assert np.abs(mono(path)).max() <= 1.5
        assert read_media(path, channels=2).waveform is not None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi"])
def test_tags_that_are_not_utf8_do_not_matter(tmp_path: Path, suffix: str) -> None:
    tagged = ("-map_metadata", "-1", "-metadata", "title=XXXXsung")
    path = build(
        Source(f"a.{suffix}", VIDEO["mpeg4"], AUDIO["mp3"], sample_rate_hz=44_100, copies=(tagged,)), tmp_path
    )
    content = path.read_bytes()
    assert b"XXXXsung" in content
    path.write_bytes(content.replace(b"XXXXsung", b"\xe9t\xe9 sung"))
    assert numbers(read_media(path).frames)[-23:] == list(range(1, 24))
    assert probe(path).height == 64


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_a_picture_size_that_changes_is_refused_with_both_sizes(tmp_path: Path, suffix: str) -> None:
    parts = [
        build(Source(f"{turn}.ts", height=64, width=width), tmp_path) for turn, width in ((0, 96), (1, 64))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    if suffix == "mkv":
        ffmpeg("-i", joined, "-c", "copy", tmp_path / "joined.mkv")
    with pytest.raises(MediaError, match="96x64") as caught:
        read_media(tmp_path / f"joined.{suffix}")
    assert "64x64" in str(caught.value) and "joined" in str(caught.value)


def test_a_clip_cut_by_stream_copy_is_its_presentable_part(tmp_path: Path) -> None:
    video = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "24", "-crf", "16")
    video += ("-pix_fmt", "yuv420p")
    for start in (0.5, 0.9):
        cut = (("-ss", str(start), "IN"),)
        path = build(Source(f"cut{start}.mp4", video, num_frames=60, copies=cut), tmp_path)
        media = read_media(path)
        found = numbers(media.frames)
        assert found[0] == pytest.approx(24 * start, abs=1) and found == list(range(found[0], 60))
        assert media.waveform is not None
        true = sound(2.5)[0][round(found[0] / 24 * RATE) :]
        assert abs(lag_s(media.waveform, true, RATE)) < 0.5 / 24  # the muxer cuts between two frames
