"""Buckets: which size and length a clip goes to, what is cut, and what is rejected."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode import make_row
from torch.nn.functional import avg_pool2d

from pretrain.data.encoding.clips import ClipReader, MediaClip, Streams
from pretrain.data.manifest import ManifestRow
from pretrain.data.stream.buckets import (
    BucketConfig,
    audio_lengths,
    check_speech,
    choose_length,
    choose_size,
    cover_scale,
    fit_picture,
)
from pretrain.jsonl import FieldError

BOTH = Streams()
SIZES = [(704, 1280), (1280, 704), (960, 960), (480, 864), (352, 640)]


@given(st.integers(16, 4000), st.integers(16, 4000), st.sampled_from([1.0, 1.25, 2.0]))
def test_the_chosen_size_is_covered_and_no_other_is_nearer(height: int, width: int, most: float) -> None:
    allowed = [size for size in SIZES if max(size[0] / height, size[1] / width) <= most + 1e-9]
    if not allowed:
        with pytest.raises(ValueError, match=f"{width}x{height} pixels would be enlarged"):
            choose_size(height, width, SIZES, most)
        return
    chosen = choose_size(height, width, SIZES, most)
    assert chosen in allowed and cover_scale(height, width, chosen) <= most + 1e-9
    distance = {size: abs(math.log((size[0] / size[1]) / (height / width))) for size in allowed}
    near = [size for size in allowed if distance[size] <= min(distance.values()) + math.log(1.05)]
    assert chosen in near and chosen[0] * chosen[1] == max(size[0] * size[1] for size in near)


def test_a_wide_clip_goes_to_a_wide_size() -> None:
    assert choose_size(1080, 1920, SIZES) == (704, 1280)
    assert choose_size(1920, 1080, SIZES) == (1280, 704)
    assert choose_size(480, 864, SIZES) == (480, 864)
    assert choose_size(703, 1280, SIZES) == (480, 864)  # never enlarged, be it by a row
    assert choose_size(703, 1280, SIZES, 1.1) == (704, 1280)


@given(st.integers(1, 300), st.lists(st.integers(0, 40).map(lambda n: 1 + 4 * n), min_size=1, max_size=5))
def test_the_longest_length_that_fits(length: int, allowed: list[int]) -> None:
    if length < min(allowed):
        with pytest.raises(ValueError, match=f"{length} frames, the shortest bucket has {min(allowed)}"):
            choose_length(length, allowed, "frames")
    else:
        chosen = choose_length(length, allowed, "frames")
        assert chosen <= length and not any(chosen < other <= length for other in allowed)


@settings(max_examples=20, deadline=None)
@given(st.integers(32, 90), st.integers(32, 90), st.sampled_from([(32, 32), (32, 64), (64, 32)]))
def test_a_fitted_picture_keeps_its_middle(height: int, width: int, size: tuple[int, int]) -> None:
    frames = torch.zeros(17, height, width, 3, dtype=torch.uint8)
    frames[:] = 200
    fitted = fit_picture(frames, size)
    assert fitted.shape == (17, *size, 3) and fitted.dtype == torch.uint8
    assert (fitted.int() - 200).abs().max() <= 1


def test_cropping_alone_changes_no_pixel_and_halving_is_an_average() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 32, 96, 3), generator=generator, dtype=torch.uint8)
    assert torch.equal(fit_picture(frames, (32, 32)), frames[:, :, 32:64])
    smooth = torch.linspace(0, 255, 64)[None, :, None, None].expand(2, 64, 64, 3).round().to(torch.uint8)
    halved = avg_pool2d(smooth.permute(0, 3, 1, 2).float(), 2).permute(0, 2, 3, 1)
    assert (fit_picture(smooth, (32, 32)).float() - halved)[:, 2:-2].abs().max() <= 1.5


def test_speech_after_the_cut_is_refused() -> None:
    check_speech((0.5, 2.0), 2, kept_s=2.0, whole_s=3.0)
    check_speech((), 0, kept_s=1.0, whole_s=3.0)
    check_speech((9.0,), 1, kept_s=3.0, whole_s=3.0)  # nothing is cut
    with pytest.raises(ValueError, match=r"speech until 2.10 s, but the clip is cut to 2.00 s"):
        check_speech((2.1, 0.5), 2, kept_s=2.0, whole_s=3.0)
    with pytest.raises(ValueError, match="no speech_end"):
        check_speech((), 1, kept_s=2.0, whole_s=3.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sizes": ("704*1280",)}, "expected HEIGHTxWIDTH such as 704x1280, got '704\\*1280'"),
        ({"sizes": ("700x1280",)}, "multiples of 32"),
        ({"frames": (24,)}, "1 \\+ 4n"),
        ({"max_upscale": 0.5}, "1 or more"),
    ],
)
def test_impossible_buckets_are_named(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BucketConfig(**wrong)


def reader(folder: Path, config: BucketConfig, streams: Streams = BOTH) -> ClipReader:
    class Zeros:
        name = "zeros"

        def embed(self, waveform: torch.Tensor) -> torch.Tensor:
            return torch.ones(192)

    return ClipReader(config, 24.0, folder, Zeros(), streams)


def read(folder: Path, row: ManifestRow, config: BucketConfig, streams: Streams = BOTH) -> MediaClip:
    clip = reader(folder, config, streams)(row)
    assert isinstance(clip, MediaClip), clip
    return clip


def test_clips_and_sounds_land_in_their_buckets(tmp_path: Path) -> None:
    row = replace(make_row(tmp_path, 1, 49), speech_end_s=(0.5,))
    clip = read(tmp_path, row, BucketConfig(frames=(5, 25, 97)))
    whole = read(tmp_path, row, BucketConfig())
    assert (
        clip.frames is not None
        and whole.frames is not None
        and clip.waveform is not None
        and whole.waveform is not None
    )
    assert clip.frames.shape[0] == 25 and torch.equal(clip.frames, whole.frames[:25])
    assert len(clip.waveform) == 26 * 640 and torch.equal(clip.waveform, whole.waveform[: 26 * 640])
    sound = read(tmp_path, row, BucketConfig(frames=(5, 25, 97)), Streams(video=False))
    assert (
        sound.frames is None
        and sound.waveform is not None
        and len(sound.waveform) == 26 * 640 == audio_lengths([25], 24.0)[0] * 640
    )
    silent = read(tmp_path, row, BucketConfig(), Streams(audio=False))
    assert silent.waveform is None and silent.frames is not None and not bool(silent.speakers.any())
    enlarged = read(tmp_path, row, BucketConfig(sizes=("64x64",), max_upscale=2.0))
    assert enlarged.frames is not None and enlarged.frames.shape == (49, 64, 64, 3)


@pytest.mark.parametrize(
    ("config", "field", "says"),
    [
        (
            BucketConfig(frames=(25,)),
            "text_list[0].speech_end",
            "speech until 1.50 s, but the clip is cut to 1.04 s",
        ),
        (BucketConfig(frames=(53,)), "video_info[0].data_path", "49 frames, the shortest bucket has 53"),
        (
            BucketConfig(sizes=("64x64",)),
            "video_info[0].data_path",
            "32x32 pixels would be enlarged 2.00 times",
        ),
    ],
)
def test_what_fits_nowhere_is_rejected_with_its_reason(
    tmp_path: Path, config: BucketConfig, field: str, says: str
) -> None:
    row = replace(make_row(tmp_path, 1, 49), speech_end_s=(1.5,), line=7)
    rejected = reader(tmp_path, config)(row)
    assert (
        isinstance(rejected, FieldError)
        and (rejected.line, rejected.field) == (7, field)
        and says in rejected.message
    )
