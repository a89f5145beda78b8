"""Pictures that `nava prepare` cuts out of a source are those that the reader of clips shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prepare_world import Sound, ffmpeg, scene, write

from experiments.preparation.config import PrepareConfig
from experiments.preparation.cutting import Piece
from experiments.preparation.pieces import cut_pieces
from experiments.preparation.records import RawClip, RawVideo, Rejection
from experiments.preparation.source_work import Settings, VideoOutcome, work_on
from pretrain.media.errors import MediaError
from pretrain.media.limits import LOCAL_LIMITS
from pretrain.media.passing import PassingPictures
from pretrain.media.picture_times import PictureTimes
from pretrain.media.read import read_media

EVERY = Settings(PrepareConfig(steps=(), min_speech_s=0.0), 24.0)


def prepared(path: Path) -> tuple[VideoOutcome, list[RawClip]]:
    clips: list[RawClip | Rejection] = []
    outcome = work_on(RawVideo(path, path.name, "a"), EVERY, clips.append)
    return outcome, [clip for clip in clips if isinstance(clip, RawClip)]


def shown_of(path: Path) -> PictureTimes:
    passing = PassingPictures(path)
    assert sum(1 for _ in passing)
    return passing.shown


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    """Five seconds of 24 pictures a second, with next to no sound, so that nothing is looked for in it."""
    path = tmp_path_factory.mktemp("raw") / "a.mp4"
    return write(path, scene(5.0, 1), Sound(5.0, 1)).path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_hole_holds_the_picture_before_it_and_the_row_says_so(still, tmp_path, suffix):
    path = tmp_path / f"hole.{suffix}"
    cut = ("-vf", "select=not(between(n\\,30\\,53))", "-fps_mode", "passthrough")
    video = ("-c:v", "libx264", "-bf", "2", "-crf", "12", "-pix_fmt", "yuv420p")
    ffmpeg("-i", still, *cut, *video, "-c:a", "pcm_s16le" if suffix == "avi" else "copy", path)
    _, clips = prepared(path)
    media = read_media(path, fps=24.0)
    assert media.frames is not None and clips[0].start_s == pytest.approx(0.0, abs=0.1)
    count = len(clips[0].frames)
    assert count > 90 and np.array_equal(clips[0].frames, media.frames[:count])
    assert clips[0].labels["mended"]["repeated_frames"] == media.mended["repeated_frames"] == 24.0
    assert not prepared(still)[1][0].labels


def test_a_piece_that_starts_in_a_hole_shows_what_began_before_it(still, tmp_path):
    path = tmp_path / "slides.mp4"
    slides = ("-vf", "select=not(mod(n\\,12))", "-fps_mode", "passthrough")
    ffmpeg("-i", still, *slides, "-c:v", "libx264", "-crf", "12", "-c:a", "copy", path)
    pictures, shown = list(PassingPictures(path)), shown_of(path)
    assert np.allclose(shown.times, np.arange(10) / 2, atol=1e-3) and shown.nominal == pytest.approx(2.0)
    pieces = [Piece(0.3, 9), Piece(1.3, 25), Piece(2.6, 49)]
    for cut in cut_pieces(path, pieces, shown, 24.0, 640, LOCAL_LIMITS):
        ticks = cut.piece.start_s + np.arange(cut.piece.num_frames) / 24
        expected = [int(tick * 2 + 1 / 24 + 1e-6) for tick in ticks]
        assert all(
            np.array_equal(frame, pictures[index]) for frame, index in zip(cut.frames, expected, strict=True)
        )


def test_no_picture_of_the_next_scene_is_in_a_clip(tmp_path):
    films = np.concatenate([scene(2.0, 11), scene(3.0, 12)])
    path = write(tmp_path / "cuts.mp4", films, Sound(5.0, 5)).path
    outcome, clips = prepared(path)
    assert outcome.scenes == [pytest.approx(2.0, abs=1e-3)]
    levels = [films[:48].mean((0, 1, 2)), films[48:].mean((0, 1, 2))]
    for clip in clips:
        own, other = levels if clip.start_s < 2.0 else levels[::-1]
        away = [[np.abs(frame.mean((0, 1)) - level).max() for level in (own, other)] for frame in clip.frames]
        assert all(here < there for here, there in away)


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_a_source_that_is_cut_off_is_refused_as_a_clip_is(still, tmp_path, suffix):
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    ffmpeg("-i", still, "-c", "copy", whole)
    content = whole.read_bytes()
    short.write_bytes(content[: len(content) * 7 // 10])
    assert prepared(whole)[1]
    outcome, clips = prepared(short)
    with pytest.raises(MediaError) as refused:
        read_media(short)
    assert not clips and [one.reason for one in outcome.rejected] == [str(refused.value)]
