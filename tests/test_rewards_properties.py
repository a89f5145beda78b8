"""What every reward that needs no download must keep: order, batch size and channels do not matter, and bad
input is never a score."""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_files import write_model
from scipy.signal import resample_poly

from pretrain.data.corpus.bank import load_bank
from rewards.base import Reward
from rewards.catalog import CATALOG
from rewards.channels import one_channel
from rewards.lips import LipLoudness
from rewards.quality.noise import NoiseEstimate
from rewards.quality.picture_noise import PictureNoise
from rewards.recipes.base import Shared
from rewards.recipes.preference import PreferenceOptions
from rewards.semantic.identity import FirstFrameIdentity
from rewards.speech.intelligibility import Intelligibility
from rewards.speech.recognizer import Recognizer
from rewards.speech.settings import JUDGE
from rewards.speech.wer import WordErrorRate
from rewards.sync.crops import FaceTracks, MouthBoxes
from rewards.sync.faces import GivenFaces
from rewards.sync.scorer import SyncReward
from rewards.sync.syncnet import MINI, SyncNet
from rewards.sync.tracking import AS_GIVEN
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.similarity import TimbreSimilarity
from rewards.timbre.voices import NearestVoice, VoiceBank
from rewards.types import Clip, Score

RATE, FPS, FRAMES = 16_000, 24.0, 48
WORDS = ("seven", "green", "window", "one")
VOICES = tuple(load_bank().voices[:4])
MOUTH, FACE = (22, 34, 42, 52), (14, 10, 50, 56)


@cache
def spoken(word: str, voice: str) -> np.ndarray:
    """Two seconds with one word in them."""
    floor = 10 ** (-3 - len(word) / 8)  # each its own noise, so that not all are equally clean
    track = (np.random.default_rng(len(word)).standard_normal(round(FRAMES * RATE / FPS)) * floor).astype(
        np.float32
    )
    waveform = load_bank().utterances[word, voice][0].waveform
    track[6400 : 6400 + len(waveform)] += waveform
    return track


@cache
def good(index: int) -> Clip:
    """A clip that every reward can score; the mouth moves with the sound and then some."""
    sound, random = spoken(WORDS[index], VOICES[index]), np.random.default_rng(index)
    loudness = np.array([np.sqrt((part**2).mean()) for part in np.array_split(sound, FRAMES)])
    frames = random.integers(150, 200, (1, 64, 64, 3)).repeat(FRAMES, axis=0)
    opening = loudness / loudness.max() * 0.8 + random.random(FRAMES) * 0.2
    x0, y0, x1, y1 = MOUTH
    frames[:, y0:y1, x0:x1] = (frames[:, y0:y1, x0:x1] * (1 - opening[:, None, None, None] * 0.8)).astype(int)
    return Clip(
        sound,
        RATE,
        frames=frames.astype(np.uint8),
        fps=FPS,
        spans=(WORDS[index],),
        references=(spoken(WORDS[index - 1], VOICES[index]),),
        voices=(VOICES[index],),
        mouth_boxes=(MOUTH,),
        face_boxes=(FACE,),
        first_frame=random.integers(100, 220, (64, 64, 3)).astype(np.uint8),
    )


def sync(source: MouthBoxes | FaceTracks, name: str) -> SyncReward:
    torch.manual_seed(0)
    return SyncReward(SyncNet(MINI).eval(), source, name)


def nearest_voice() -> NearestVoice:
    encoder = ResemblyzerEncoder()
    said = [spoken(word, voice) for voice in VOICES for word in WORDS[:2]]
    return NearestVoice(
        encoder, VoiceBank(tuple(np.repeat(VOICES, 2)), tuple("abcdefgh"), encoder.embed(said))
    )


def preference_for_clean_sound() -> Reward:
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "preference.json", ("snr_estimate_db",), mean=0.0)
        return CATALOG["preference"].make(PreferenceOptions(model), Shared(ExitStack()))


@dataclass(frozen=True)
class Case:
    """How a reward is built, and which parts of a clip it needs."""

    build: Callable[[], Reward]
    needs: frozenset[str]


REWARDS = {
    "lip_loudness_correlation": Case(
        LipLoudness, frozenset({"sound", "frames", "several frames", "movement", "face", "fps"})
    ),
    "sync_mini": Case(
        lambda: sync(MouthBoxes(), "sync_mini"),
        frozenset({"sound", "frames", "several frames", "face", "fps"}),
    ),
    "sync_judge": Case(
        lambda: sync(MouthBoxes(), "sync_judge"),
        frozenset({"sound", "frames", "several frames", "face", "fps"}),
    ),
    "sync_mini of given faces": Case(
        lambda: sync(FaceTracks(GivenFaces(), AS_GIVEN, size=32), "sync_mini"),
        frozenset({"sound", "frames", "several frames", "face", "fps"}),
    ),
    "wer_pocketsphinx": Case(
        lambda: WordErrorRate(Recognizer(load_bank().words)), frozenset({"sound", "text"})
    ),
    "wer_pocketsphinx_judge": Case(
        lambda: WordErrorRate(Recognizer(load_bank().words, settings=JUDGE)), frozenset({"sound", "text"})
    ),
    "intelligibility_pocketsphinx": Case(
        lambda: Intelligibility(Recognizer(load_bank().words)), frozenset({"sound", "text"})
    ),
    "intelligibility_pocketsphinx_judge": Case(
        lambda: Intelligibility(Recognizer(load_bank().words, settings=JUDGE)), frozenset({"sound", "text"})
    ),
    "sim_resemblyzer": Case(
        lambda: TimbreSimilarity(ResemblyzerEncoder()), frozenset({"sound", "reference"})
    ),
    "voice_accuracy_resemblyzer": Case(nearest_voice, frozenset({"sound", "voice"})),
    "snr_estimate_db": Case(NoiseEstimate, frozenset({"sound"})),
    "picture_noise_judge": Case(PictureNoise, frozenset({"frames", "several frames"})),
    "identity_colour_edge": Case(FirstFrameIdentity, frozenset({"frames", "several frames", "first_frame"})),
    "preference": Case(preference_for_clean_sound, frozenset({"sound"})),
}

SOUND, PICTURES = spoken(WORDS[0], VOICES[0]), good(0).frames
assert PICTURES is not None
WITH_NAN = SOUND.copy()
WITH_NAN[5000] = np.nan
# What is wrong: the fields of the clip that are replaced, and the need of rewards that is no longer met
BAD: dict[str, tuple[dict, str]] = {
    "no sound": ({"waveform": None}, "sound"),
    "empty sound": ({"waveform": SOUND[:0]}, "sound"),
    "silent": ({"waveform": SOUND * 0}, "sound"),
    "silent stereo": ({"waveform": np.zeros((2, len(SOUND)), np.float32)}, "sound"),
    "NaN samples": ({"waveform": WITH_NAN}, "sound"),
    "infinite samples": ({"waveform": np.where(np.isnan(WITH_NAN), np.inf, SOUND)}, "sound"),
    "16-bit integers": ({"waveform": (SOUND * 32767).astype(np.int16)}, "sound"),
    "8-bit integers": ({"waveform": (SOUND * 127 + 128).astype(np.uint8)}, "sound"),
    "integers read as floats": ({"waveform": SOUND * 32767}, "sound"),
    "0.1 s of sound": ({"waveform": SOUND[8000:9600]}, "sound"),
    "0 channels": ({"waveform": np.zeros((0, len(SOUND)), np.float32)}, "sound"),
    "three axes of sound": ({"waveform": SOUND[None, None]}, "sound"),
    "samples before channels": ({"waveform": np.stack([SOUND, SOUND], axis=1)}, "sound"),
    "sample rate 0": ({"sample_rate_hz": 0}, "sound"),
    "sample rate below 0": ({"sample_rate_hz": -16_000}, "sound"),
    "no frames": ({"frames": None}, "frames"),
    "empty frames": ({"frames": PICTURES[:0]}, "frames"),
    "1 frame": ({"frames": PICTURES[:1]}, "several frames"),
    "black frames": ({"frames": PICTURES * 0}, "frames"),
    "frames as floats": ({"frames": PICTURES.astype(np.float32) / 255}, "frames"),
    "frames as floats to 255": ({"frames": PICTURES.astype(np.float32)}, "frames"),
    "grey frames": ({"frames": PICTURES[..., 0]}, "frames"),
    "frames with alpha": ({"frames": np.concatenate([PICTURES, PICTURES[..., :1]], axis=3)}, "frames"),
    "still frames": ({"frames": PICTURES[:1].repeat(FRAMES, axis=0)}, "movement"),
    "no face": ({"mouth_boxes": (), "face_boxes": ()}, "face"),
    "face outside": ({"mouth_boxes": ((70, 0, 90, 20),), "face_boxes": ((70, 0, 90, 20),)}, "face"),
    "fps 0": ({"fps": 0.0}, "fps"),
    "fps below 0": ({"fps": -24.0}, "fps"),
    "fps NaN": ({"fps": math.nan}, "fps"),
    "fps infinite": ({"fps": math.inf}, "fps"),
    "fps doubled": ({"fps": 48.0}, "fps"),
    "fps halved": ({"fps": 12.0}, "fps"),
    "no spans": ({"spans": ()}, "text"),
    "empty text": ({"spans": ("",)}, "text"),
    "text without words": ({"spans": (" ?!… ",)}, "text"),
    "no reference": ({"references": ()}, "reference"),
    "free reference": ({"references": (None,)}, "reference"),
    "silent reference": ({"references": (SOUND * 0,)}, "reference"),
    "NaN in reference": ({"references": (WITH_NAN,)}, "reference"),
    "two references": ({"references": (SOUND, SOUND)}, "reference"),
    "no voice": ({"voices": ()}, "voice"),
    "unknown voice": ({"voices": ("nobody",)}, "voice"),
    "no first frame": ({"first_frame": None}, "first_frame"),
    "first frame as floats": ({"first_frame": np.full((64, 64, 3), 99.0, np.float32)}, "first_frame"),
    "grey first frame": ({"first_frame": np.full((64, 64), 99, np.uint8)}, "first_frame"),
    "black first frame": ({"first_frame": np.zeros((64, 64, 3), np.uint8)}, "first_frame"),
}


@cache
def reward(name: str) -> Reward:
    return REWARDS[name].build()


@cache
def alone(name: str) -> list[Score]:
    """Each good clip in a batch of its own; built anew so that nothing is remembered from a larger batch."""
    built = REWARDS[name].build()
    return [built.score([good(i)])[0] for i in range(len(WORDS))]


def same(found: Score, wanted: Score, tolerance: float = 1e-5) -> bool:
    numbers = zip([found.value, *found.parts.values()], [wanted.value, *wanted.parts.values()], strict=True)
    return (
        found.text == wanted.text
        and found.parts.keys() == wanted.parts.keys()
        and all(abs(a - b) <= tolerance for a, b in numbers)
    )


def test_every_reward_that_runs_offline_is_in_the_table():
    assert {name for name, entry in CATALOG.items() if entry.offline} <= set(REWARDS)


@pytest.mark.parametrize("name", REWARDS)
def test_good_clips_are_scored_and_not_all_alike(name):
    scores = alone(name)
    assert all(math.isfinite(score.value) and not score.reason for score in scores), [
        score.reason for score in scores
    ]
    assert len({(score.value, score.text) for score in scores}) > 1


@pytest.mark.parametrize("name", REWARDS)
@given(st.permutations(range(len(WORDS))))
@settings(max_examples=4)
def test_shuffling_the_batch_permutes_the_scores(name, order):
    for index, score in zip(order, reward(name).score([good(i) for i in order]), strict=True):
        assert same(score, alone(name)[index]), (index, score, alone(name)[index])


@pytest.mark.parametrize("name", REWARDS)
def test_many_channels_equal_their_down_mix(name):
    random = np.random.default_rng(3)
    for channels in (2, 6):
        sound = np.stack([SOUND * gain for gain in random.uniform(0.2, 1.0, channels)]).astype(np.float32)
        sound += (random.standard_normal(sound.shape) * 1e-3).astype(np.float32)
        # six are those of a 5.1 file: FFmpeg's weights, no LFE
        mixed = sound.mean(axis=0) if channels == 2 else one_channel(sound)
        many, one = (dataclasses.replace(good(0), waveform=waveform) for waveform in (sound, mixed))
        found, wanted = reward(name).score([many, one])
        assert not found.reason and same(found, wanted), (channels, found, wanted)


@pytest.mark.parametrize("name", REWARDS)
def test_sound_at_44_1_khz_scores_as_at_16(name):
    resampled = resample_poly(SOUND, 441, 160).astype(np.float32)
    found, wanted = reward(name).score(
        [dataclasses.replace(good(0), waveform=resampled, sample_rate_hz=44_100), good(0)]
    )
    assert abs(found.value - wanted.value) <= max(0.02, 0.05 * abs(wanted.value)), (found, wanted)


@pytest.mark.parametrize("name", REWARDS)
def test_bad_input_is_nan_with_a_reason_and_spoils_nothing_else(name):
    wrong = []
    for what, (fields, need) in BAD.items():
        clip = dataclasses.replace(good(0), **fields)
        must_fail = need in REWARDS[name].needs
        try:
            score = reward(name).score([clip])[0]
        except Exception as error:  # a clip's fault must not stop the scorer
            wrong.append(f"{what}: raised {type(error).__name__}: {error}")
            continue
        if math.isnan(score.value) != must_fail or bool(score.reason) != must_fail:
            wrong.append(
                f"{what}: {score.value} ({score.reason!r}), should {'be NaN' if must_fail else 'be scored'}"
            )
    assert wrong == []
    mixed = [
        dataclasses.replace(good(0), **BAD["silent"][0]),
        good(1),
        dataclasses.replace(good(0), **BAD["black frames"][0]),
        good(2),
    ]
    assert all(
        same(score, alone(name)[index])
        for index, score in zip((1, 2), reward(name).score(mixed)[1::2], strict=True)
    )
