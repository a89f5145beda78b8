"""Voices: our batched Resemblyzer is the library's, voices are told apart, spans are cut at pauses."""

import importlib
import math
import warnings

import numpy as np
import pytest

from pretrain.data.corpus.bank import load_bank
from rewards.base import Unscorable
from rewards.sound import split_spans
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.similarity import TimbreSimilarity
from rewards.timbre.voices import NearestVoice, VoiceBank
from rewards.types import Clip

RATE = 16_000


@pytest.fixture(scope="module")
def encoder():
    return ResemblyzerEncoder()


def said(voice: str, words: tuple[str, ...], take: int = 0) -> np.ndarray:
    gap = np.zeros(3200, np.float32)
    return np.concatenate([piece for word in words for piece in (gap, load_bank().utterances[word, voice][take].waveform)] + [gap])


@pytest.fixture(scope="module")
def bank(encoder):
    entries = [(voice, f"{voice} {word}", said(voice, (word,))) for voice in load_bank().voices for word in load_bank().words[:6]]
    voices, names, sounds = zip(*entries, strict=True)
    return VoiceBank(voices, names, encoder.embed(sounds))


def test_batched_embeddings_equal_the_library(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses retired names of scipy and setuptools
        library = importlib.import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)
    rng = np.random.default_rng(0)
    sounds = [(rng.standard_normal(length) * 0.03).astype(np.float32) for length in (5000, 16_640, 25_600, 31_000, 70_001)]
    expected = np.stack([library.embed_utterance(sound) for sound in sounds])
    np.testing.assert_allclose(encoder.embed_as_they_are(sounds), expected, atol=2e-5)


def test_batch_is_the_same_as_one_by_one(encoder):
    sounds = [said("slt", ("seven",)), said("rms", ("green", "one")), said("awb", ("window",))]
    together = encoder.embed(sounds)
    for i, sound in enumerate(sounds):
        np.testing.assert_allclose(encoder.embed([sound])[0], together[i], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_loudness_does_not_matter_and_same_sound_is_similarity_one(encoder):
    sound = said("rms", ("seven", "green"))
    score = TimbreSimilarity(encoder).score([Clip(sound * 0.1, RATE, spans=("seven green",), references=(sound,))])[0]
    assert score.value == pytest.approx(1.0, abs=1e-4)


def test_same_voice_is_more_similar_than_another(encoder):
    reference = said("slt", ("garden", "window", "table"))
    clips = [
        Clip(said(voice, ("seven", "green")), RATE, spans=("seven green",), references=(reference,)) for voice in ("slt", "rms", "kal16")
    ]
    own, *others = [score.value for score in TimbreSimilarity(encoder).score(clips)]
    assert own > max(others) + 0.05


def test_nearest_voice_is_right_and_leaves_itself_out(encoder, bank):
    clips = [
        Clip(said(voice, (word,), take=1), RATE, spans=(word,), voices=(voice,))
        for voice in load_bank().voices
        for word in load_bank().words[6:11]
    ]
    scores = NearestVoice(encoder, bank).score(clips)
    assert np.mean([score.value for score in scores]) >= 0.9
    lonely = VoiceBank(("a", "b"), ("x", "y"), np.eye(2, 256, dtype=np.float32))
    towards_a = lonely.embeddings[:1] + 0.1 * lonely.embeddings[1:]
    assert lonely.nearest(towards_a) == ["a"]
    assert lonely.nearest(towards_a, ["x"]) == ["b"]  # without x nothing is left of a


def test_spans_of_a_dialogue_are_scored_on_their_own(encoder, bank):
    sound = np.concatenate([said("slt", ("seven",)), said("kal16", ("garden",))])
    clip = Clip(sound, RATE, spans=("seven", "garden"), voices=("slt", "kal16"))
    swapped = Clip(sound, RATE, spans=("seven", "garden"), voices=("kal16", "slt"))
    assert [score.value for score in NearestVoice(encoder, bank).score([clip, swapped])] == [1.0, 0.0]


def test_split_spans_cuts_inside_the_longest_pauses():
    burst, pause = np.ones(1600, np.float32), np.zeros(4800, np.float32)
    pieces = split_spans(np.concatenate([burst, pause, burst, np.zeros(800, np.float32), burst]), 2)
    assert [len(piece) for piece in pieces] == [1600 + 2400, 2400 + 1600 + 800 + 1600]
    with pytest.raises(Unscorable, match="1 pause"):
        split_spans(burst, 2)


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(np.zeros(16_000, np.float32), RATE, spans=("one",), references=(np.ones(9, np.float32),), voices=("slt",)), "silent"),
        (Clip(np.ones(16_000, np.float32), RATE, spans=("one",)), "no reference"),
        (Clip(np.ones(16_000, np.float32), RATE, spans=("one",), voices=("bob",)), "bob"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(encoder, bank, clip, reason):
    scorer = NearestVoice(encoder, bank) if clip.voices else TimbreSimilarity(encoder)
    score = scorer.score([clip])[0]
    assert math.isnan(score.value) and reason in score.reason
