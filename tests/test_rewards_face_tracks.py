"""Tracks: paths are found again under jitter and missed frames, limits are exact, the presets hold the
published table."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import medfilt

from rewards.sync.faces import Detection
from rewards.sync.shots import colour_histograms, histogram_cuts
from rewards.sync.tracking import (
    LATENTSYNC,
    SYNCNET_PYTHON,
    VERSE_BENCH,
    Track,
    Tracking,
    at_fps,
    overlap,
    smoothed,
    track_faces,
)

RANDOM = np.random.default_rng(0)
SHORT = dataclasses.replace(LATENTSYNC, name="short", min_frames=5, min_face_px=10.0)


def face(x: float, y: float, half: float = 40.0, score: float = 1.0) -> Detection:
    return Detection((x - half, y - half, x + half, y + half), score)


def test_presets_hold_the_table():
    table = {
        variant.name: (
            variant.crop_scale,
            variant.min_frames,
            variant.min_face_px,
            variant.median_frames,
            variant.linking,
            variant.max_gap_frames,
            variant.shots,
        )
        for variant in (SYNCNET_PYTHON, LATENTSYNC, VERSE_BENCH)
    }
    assert table == {
        "syncnet_python": (0.40, 101, 100.0, 13, "iou", 25, "histogram"),
        "latentsync": (0.40, 51, 100.0, 13, "iou", 25, "histogram"),
        "verse_bench": (0.30, 50, 0.0, 1, "best", 1, "none"),
    }
    assert SYNCNET_PYTHON.min_iou == LATENTSYNC.min_iou == 0.5
    with pytest.raises(ValueError, match="median_frames is 12"):
        Tracking("even", 0.4, median_frames=12)


def test_overlap_by_hand():
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 4, 4), (4, 0, 8, 4)) == 0.0 == overlap((0, 0, 4, 4), (9, 9, 12, 12))
    assert overlap((0, 0, 4, 4), (0, 0, 4, 4)) == 1.0


@given(
    st.lists(st.floats(-0.5, 0.5), min_size=60, max_size=60),
    st.sets(st.integers(1, 58), max_size=30),
    st.floats(-2, 2),
    st.randoms(use_true_random=False),
)
@settings(max_examples=25)
def test_a_jittered_path_with_missed_frames_is_found_again(jitter, missed, speed, shuffler):
    path = [(200 + speed * t, 150 - speed * t) for t in range(60)]
    found = [
        [face(x + jitter[t], y - jitter[t], 60)] * (t not in missed) + [face(20, 300, 15)]
        for t, (x, y) in enumerate(path)
    ]
    tracks = track_faces(found, LATENTSYNC)
    if len(path) - len(missed) <= 50:  # detections count, not frames
        assert tracks == []
        return
    assert len(tracks) == 1 and tracks[0].start == 0 and len(tracks[0].boxes) == 60
    places = smoothed(tracks[0], LATENTSYNC)
    np.testing.assert_allclose(places[6:-6, :2], np.array(path)[6:-6], atol=0.5 + 1e-9)
    np.testing.assert_allclose(places[6:-6, 2], 60.0)
    mixed = [shuffler.sample(faces, len(faces)) for faces in found]
    np.testing.assert_array_equal(track_faces(mixed, LATENTSYNC)[0].boxes, tracks[0].boxes)


@given(st.integers(0, 2**16), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_order_within_a_frame_does_not_matter(seed, shuffler):
    random = np.random.default_rng(seed)
    found = [
        [
            face(*random.uniform(50, 120, 2), score=float(random.integers(3)))
            for _ in range(random.integers(4))
        ]
        for _ in range(30)
    ]
    for variant in (SHORT, dataclasses.replace(VERSE_BENCH, min_frames=2)):
        first = track_faces(found, variant)
        second = track_faces([shuffler.sample(faces, len(faces)) for faces in found], variant)
        assert [(track.start, track.boxes.tolist()) for track in first] == [
            (track.start, track.boxes.tolist()) for track in second
        ]


def test_missed_frames_are_filled_along_a_straight_line():
    found = [[face(100 + 3 * t, 80 - t, 40 + t)] if t % 4 == 0 else [] for t in range(41)]
    (track,) = track_faces(found, SHORT)
    along = np.arange(41.0)
    wanted = np.stack([60 + 2 * along, 40 - 2 * along, 140 + 4 * along, 120 + 0 * along], axis=1)
    np.testing.assert_allclose(track.boxes, wanted, atol=1e-9)


@pytest.mark.parametrize(("apart", "count"), [(25, 1), (26, 2)])
def test_a_gap_of_25_frames_is_bridged_and_26_are_not(apart, count):
    found = (
        [[face(100, 100)] for _ in range(10)]
        + [[] for _ in range(apart - 1)]
        + [[face(100, 100)] for _ in range(10)]
    )
    assert len(track_faces(found, SHORT)) == count


def test_two_faces_that_do_not_touch_are_two_tracks_and_a_jump_ends_one():
    both = [[face(100, 100), face(300, 100)] for _ in range(10)]
    assert [track.boxes[0, 0] for track in track_faces(both, SHORT)] == [60.0, 260.0]
    jump = [[face(100 if t < 10 else 130, 100)] for t in range(20)]  # overlap 50 / 110
    assert [track.start for track in track_faces(jump, SHORT)] == [0, 10]
    half = [
        [face(100 if t < 10 else 130, 100, 45)] for t in range(20)
    ]  # overlap 60 / 120: not more than a half
    assert len(track_faces(half, SHORT)) == 2
    near = [[face(100 if t < 10 else 125, 100)] for t in range(20)]  # overlap 55 / 105
    assert len(track_faces(near, SHORT)) == 1


def test_length_and_size_are_exclusive_limits():
    def count(frames: int, half: float, variant: Tracking = SYNCNET_PYTHON, fps: float = 25.0) -> int:
        return len(track_faces([[face(200, 200, half)] for _ in range(frames)], variant, fps))

    assert [count(100, 60), count(101, 60)] == [0, 1]
    assert [count(101, 50), count(101, 50.1)] == [0, 1]
    assert [count(50, 60, LATENTSYNC), count(51, 60, LATENTSYNC)] == [0, 1]
    assert [count(49, 5, VERSE_BENCH), count(50, 5, VERSE_BENCH)] == [0, 1]
    assert [count(201, 60, fps=50.0), count(202, 60, fps=50.0)] == [0, 1]
    assert (at_fps(101, 24.0), at_fps(25, 12.5), at_fps(1, 1.0)) == (97, 12, 1)


def test_verse_bench_follows_the_best_score_and_breaks_where_no_face_is():
    found = [[face(100, 100, score=0.8), face(400, 100, score=0.9 if t >= 60 else 0.7)] for t in range(120)]
    (track,) = track_faces(found, VERSE_BENCH)
    assert track.boxes[59, 0] == 60.0 and track.boxes[60, 0] == 360.0  # it may change the person
    found[55] = []
    assert [(track.start, len(track.boxes)) for track in track_faces(found, VERSE_BENCH)] == [
        (0, 55),
        (56, 64),
    ]
    assert [(track.start, len(track.boxes)) for track in track_faces(found, VERSE_BENCH, fps=50.0)] == []


def test_the_median_takes_out_a_jump_and_a_short_track_keeps_its_size():
    boxes = np.tile([60.0, 60.0, 140.0, 120.0], (30, 1))
    boxes[15] += 300
    np.testing.assert_array_equal(
        smoothed(Track(0, boxes), SYNCNET_PYTHON), np.tile([100.0, 90.0, 40.0], (30, 1))
    )
    np.testing.assert_array_equal(
        smoothed(Track(0, boxes[:3]), SYNCNET_PYTHON), np.tile([100.0, 90.0, 40.0], (3, 1))
    )
    assert smoothed(Track(0, boxes), VERSE_BENCH)[15, 0] == 400.0


def test_the_median_equals_scipys_with_zeros_beyond_the_ends():
    boxes = np.sort(RANDOM.uniform(0, 300, (40, 4)), axis=1)
    found = smoothed(Track(0, boxes), LATENTSYNC)
    np.testing.assert_allclose(found[:, 0], medfilt((boxes[:, 0] + boxes[:, 2]) / 2, 13))
    np.testing.assert_allclose(
        found[:, 2], medfilt(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) / 2, 13)
    )


def test_a_cut_is_seen_and_movement_is_not():
    first, second = np.full((10, 90, 70, 3), 30, np.uint8), np.full((10, 90, 70, 3), 200, np.uint8)
    first[:, 20:50, 10:40], second[:, 20:50, 30:60] = 150, 90
    assert histogram_cuts(np.concatenate([first, second])) == [10]
    assert histogram_cuts(np.stack([np.roll(first[0], t, axis=1) for t in range(15)])) == []
    assert histogram_cuts(first[:1]) == []
    shares = colour_histograms(first[:1])[0]
    assert shares[:, 1].tolist() == pytest.approx([1 - 900 / 6300] * 3) and shares[
        :, 9
    ].tolist() == pytest.approx([900 / 6300] * 3)
