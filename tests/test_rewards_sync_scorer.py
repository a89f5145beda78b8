"""The sync reward of whole clips: by hand from the network, whatever the batch; and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.channels import one_channel
from rewards.sync.crops import FaceCrops, MouthBoxes
from rewards.sync.distance import masked_sync_distance, shift_distances, sync_distance
from rewards.sync.mfcc import mfcc
from rewards.sync.scorer import SyncReward
from rewards.sync.syncnet import MINI, PUBLISHED, SyncNet
from rewards.sync.zero_lag import zero_lag
from rewards.types import Clip

RATE = 16_000


def network() -> SyncNet:
    """Untrained, with outputs that differ from window to window."""
    torch.manual_seed(0)
    net = SyncNet(MINI)
    net.train()
    with torch.no_grad():  # batch norms see data like the clips' below
        for _ in range(20):
            net.embed_lips(torch.randint(0, 256, (1, 3, 40, 32, 32)).float())
            sound = mfcc(0.1 * np.random.default_rng(0).standard_normal(20_000), 1.0)
            net.embed_sound(
                torch.from_numpy(np.stack([sound[4 * i : 4 * i + 20].T[None] for i in range(25)]))
            )
    return net.eval()


NET = network()
REWARD = SyncReward(NET, MouthBoxes())


def clip(frames: int = 40, fps: float = 25.0, seed: int = 0, faces: int = 1) -> Clip:
    random = np.random.default_rng(seed)
    num = round(frames / fps * RATE)
    sound = (0.1 * random.standard_normal(num) * (1 + np.sin(np.arange(num) / 700))).astype(np.float32)
    pixels = random.integers(0, 256, (frames, 48, 100, 3), dtype=np.uint8)
    boxes = tuple((10 + 50 * face, 8, 42 + 50 * face, 40) for face in range(faces))
    return Clip(sound, RATE, frames=pixels, fps=fps, mouth_boxes=boxes)


def pixels_of(one: Clip) -> np.ndarray:
    assert one.frames is not None
    return one.frames


def sound_of(one: Clip) -> np.ndarray:
    assert one.waveform is not None
    return one.waveform


def same(first, second) -> None:
    assert first.value == pytest.approx(second.value, abs=1e-5, nan_ok=True) and first.reason == second.reason
    assert first.parts == pytest.approx(dict(second.parts), abs=1e-5)


def by_hand(crops: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the published count of windows, window by window through the unfolded network."""
    count = min(len(crops), len(sound) // 640) - 5
    columns = mfcc(sound, 1.0)
    with torch.inference_mode():
        pictures = [
            torch.from_numpy(crops[i : i + 5]).permute(3, 0, 1, 2)[None].float() for i in range(count)
        ]
        v = torch.cat([NET.embed_lips(window)[0] for window in pictures])
        a = torch.cat(
            [
                NET.embed_sound(torch.from_numpy(columns[4 * i : 4 * i + 20].T[None, None].copy()))
                for i in range(count)
            ]
        )
    return v.numpy(), a.numpy()


def test_a_clip_by_hand():
    given_clip = clip()
    sound_of(given_clip)[4_000:12_000] = 0  # where the floor of the coefficients counts
    v, a = by_hand(MouthBoxes().crops(given_clip)[0].pixels, sound_of(given_clip))
    assert len(v) == 35
    score = REWARD.score([given_clip])[0]
    lagged, distances = zero_lag(v, a), shift_distances(v, a)
    published = sync_distance(distances)
    assert abs(lagged.value) > 1e-3
    assert score.value == pytest.approx(lagged.value, abs=1e-5)
    assert score.parts == pytest.approx(
        {
            "rho_zero": lagged.rho_zero,
            "expected_lag": lagged.expected_lag,
            "sync_c_mini": published.confidence,
            "sync_d_mini": published.distance,
            "sync_c_masked_mini": masked_sync_distance(distances).confidence,
            "offset_frames": published.offset_frames,
            "faces": 1,
            "windows": 35,
        },
        abs=1e-5,
    )


MIXED = [
    clip(40, 25.0, 1),
    clip(36, 24.0, 2),
    clip(60, 25.0, 24, faces=2),
    clip(12, 25.0, 4),
    clip(30, 30.0, 5),
]
ALONE = [REWARD.score([one])[0] for one in MIXED]


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(len(MIXED))), st.integers(1, len(MIXED)))
def test_scores_follow_the_clips_whatever_the_batch(order, size):
    scores = REWARD.score([MIXED[place] for place in order[:size]])
    for place, score in zip(order, scores, strict=False):
        same(score, ALONE[place])


def test_the_mean_is_over_faces():
    both = MIXED[2]
    one, other = (
        REWARD.score([dataclasses.replace(both, mouth_boxes=(box,))])[0] for box in both.mouth_boxes
    )
    assert abs(one.value - other.value) > 1e-4
    assert ALONE[2].value == pytest.approx((one.value + other.value) / 2, abs=1e-6)
    assert ALONE[2].parts["sync_c_mini"] == pytest.approx(
        (one.parts["sync_c_mini"] + other.parts["sync_c_mini"]) / 2, abs=1e-6
    )
    assert (ALONE[2].parts["faces"], ALONE[2].parts["windows"]) == (2, 110)
    assert one.parts["offset_frames"] != other.parts["offset_frames"]
    surest = max(one, other, key=lambda score: score.parts["sync_c_mini"])
    assert ALONE[2].parts["offset_frames"] == surest.parts["offset_frames"]


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_equal_their_down_mix(channels):
    mono = clip()
    spread = sound_of(mono) * np.linspace(0.5, 1.5, channels, dtype=np.float32)[:, None]
    mixed = sound_of(mono) if channels == 2 else one_channel(spread)
    several, one = (dataclasses.replace(mono, waveform=waveform) for waveform in (spread, mixed))
    same(REWARD.score([several])[0], REWARD.score([one])[0])


def test_a_still_face_has_no_reward():
    still = clip()
    pixels_of(still)[:] = pixels_of(still)[0]
    score = REWARD.score([still])[0]
    assert score.value == pytest.approx(0, abs=1e-4) and not score.reason


def test_a_frame_rate_of_24_is_shown_at_25():
    slow = clip(48, 24.0)
    shown = pixels_of(slow)[np.minimum(np.floor(np.arange(50) * 0.96 + 0.5).astype(int), 47)]
    same(REWARD.score([slow])[0], REWARD.score([dataclasses.replace(slow, frames=shown, fps=25.0)])[0])


@dataclasses.dataclass
class Tracked:
    """A face that is there from frame `start` on, and one that is there too shortly."""

    start: int
    label: str = "tracked"
    calls: int = 0

    def crops(self, clip):
        self.calls += 1
        return [
            FaceCrops(clip.frames[self.start :, 8:40, 10:42], self.start),
            FaceCrops(clip.frames[:15, 8:40, 10:42]),
        ]


def test_a_later_face_hears_the_sound_from_there():
    whole, tracked = clip(60), Tracked(20)
    rest = dataclasses.replace(whole, frames=pixels_of(whole)[20:], waveform=sound_of(whole)[20 * 640 :])
    found = SyncReward(NET, tracked).score([whole])[0]
    wanted = SyncReward(NET, Tracked(0)).score([rest])[0]
    same(found, wanted)
    assert found.parts["faces"] == 1 and found.parts["windows"] == 35


def test_every_face_and_sound_is_embedded_once(monkeypatch):
    tracked = Tracked(0)
    reward = SyncReward(NET, tracked)
    seen = {"lips": 0, "sound": 0}
    for name in seen:
        inner = getattr(reward._embedder, name)
        monkeypatch.setattr(
            reward._embedder,
            name,
            lambda items, inner=inner, name=name: (
                seen.update({name: seen[name] + sum(map(len, items))}),
                inner(items),
            )[1],
        )
    reward.score([clip(40, seed=1), clip(40, seed=2)])
    assert tracked.calls == 2 and seen == {"lips": 2 * 39, "sound": 2 * 35}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"waveform": None}, "no sound"),
        ({"waveform": np.zeros(25_600, np.float32)}, "silent"),
        ({"waveform": np.full(25_600, np.nan, np.float32)}, "NaN"),
        ({"waveform": np.ones(25_600, np.uint8)}, "uint8 samples"),
        ({"frames": None}, "no frames"),
        ({"frames": np.zeros((40, 48, 100, 3), np.uint8)}, "black"),
        ({"frames": np.full((1, 48, 100, 3), 99, np.uint8)}, "1 frame"),
        ({"mouth_boxes": ()}, "no mouth box"),
        ({"fps": 30.0}, "1.33 s of frames at 30 fps, 1.60 s of sound"),
        ({"fps": 0.0}, "0.0 frames per second"),
        ({"fps": math.nan}, "nan frames per second"),
        ({"sample_rate_hz": 44_100}, "s of sound"),
    ],
)
def test_what_cannot_be_scored_has_a_reason(change, reason):
    score = REWARD.score([dataclasses.replace(clip(), **change)])[0]
    assert math.isnan(score.value) and reason in score.reason and not score.parts


def test_short_clips_have_a_reason():
    assert REWARD.score([clip(20)])[0].reason == "15 windows of 0.2 s, at least 16 are needed"
    assert not REWARD.score([clip(21)])[0].reason


def test_44_khz_is_resampled():
    time = np.arange(44_100 * 8 // 5) / 44_100
    high = np.sin(2 * np.pi * 300 * time).astype(np.float32) * (0.3 + 0.2 * np.sin(9 * time)).astype(
        np.float32
    )
    low = np.sin(2 * np.pi * 300 * np.arange(25_600) / RATE) * (
        0.3 + 0.2 * np.sin(9 * np.arange(25_600) / RATE)
    )
    found, wanted = (
        REWARD.score([dataclasses.replace(clip(), waveform=sound.astype(np.float32), sample_rate_hz=rate)])[0]
        for sound, rate in ((high, 44_100), (low, RATE))
    )
    assert found.value == pytest.approx(wanted.value, abs=0.05)


def test_crops_of_another_size_are_a_broken_scorer():
    with pytest.raises(ValueError, match=r"32, 32, 3\], got uint8 \[39, 48, 48, 3\]"):
        SyncReward(NET, MouthBoxes(size=48)).score([clip()])


@dataclasses.dataclass
class Faces:
    label: str

    def crops(self, clip):
        return [FaceCrops(np.repeat(np.repeat(clip.frames[:, :32, :32], 7, axis=1), 7, axis=2))]


@pytest.mark.parametrize(("label", "name"), [("", "sync_c"), ("verse_bench_haar", "sync_c_verse_bench_haar")])
def test_only_published_crops_carry_the_published_name(label, name):
    torch.manual_seed(0)
    score = SyncReward(SyncNet(PUBLISHED), Faces(label), name="sync").score([clip(21)])[0]
    assert name in score.parts and name.replace("sync_c", "sync_d") in score.parts
    assert sum(part.startswith("sync_c") for part in score.parts) == 2
