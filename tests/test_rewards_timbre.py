"""Voices: our batched Resemblyzer is the library's, voices are told apart, spans are cut at pauses."""

import dataclasses
import importlib
import importlib.util
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.corpus.bank import load_bank
from rewards.base import Unscorable
from rewards.sound import split_spans
from rewards.timbre.encoder import EmbeddingCache
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
    return np.concatenate(
        [piece for word in words for piece in (gap, load_bank().utterances[word, voice][take].waveform)]
        + [gap]
    )


@pytest.fixture(scope="module")
def bank(encoder):
    entries = [
        (voice, f"{voice} {word}", said(voice, (word,)))
        for voice in load_bank().voices
        for word in load_bank().words[:6]
    ]
    voices, names, sounds = zip(*entries, strict=True)
    return VoiceBank(voices, names, encoder.embed(sounds))


def test_batched_embeddings_equal_the_library(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses retired names of scipy and setuptools
        library = importlib.import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)
    rng = np.random.default_rng(0)
    sounds = [
        (rng.standard_normal(length) * 0.03).astype(np.float32)
        for length in (5000, 16_640, 25_600, 31_000, 70_001)
    ]
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
    score = TimbreSimilarity(encoder).score(
        [Clip(sound * 0.1, RATE, spans=("seven green",), references=(sound,))]
    )[0]
    assert score.value == pytest.approx(1.0, abs=1e-4)


def test_the_own_voice_is_nearer_than_another_in_95_of_100_pairs(encoder):
    """Two words against two other words of the same voice and of another, 200 times (99 % when it was
    measured)."""
    voices, words, rng = load_bank().voices, load_bank().words, np.random.default_rng(0)
    own, other = [], []
    for _ in range(200):
        voice, stranger = rng.choice(voices, 2, replace=False)
        first, second, *rest = rng.choice(words, 4, replace=False)
        reference = said(voice, tuple(rest))
        own.append(Clip(said(voice, (first, second)), RATE, references=(reference,)))
        other.append(Clip(said(stranger, (first, second)), RATE, references=(reference,)))
    scores = [score.value for score in TimbreSimilarity(encoder).score(own + other)]
    assert np.isfinite(scores).all()
    assert np.mean(np.array(scores[:200]) > np.array(scores[200:])) >= 0.95


def test_channels_are_averaged_and_the_order_of_clips_does_not_matter(encoder):
    reference = said("slt", ("garden",))
    mono, side = (
        said("slt", ("seven",)),
        np.random.default_rng(0).standard_normal(said("slt", ("seven",)).shape).astype(np.float32) * 0.1,
    )
    clips = [
        Clip(sound, RATE, references=(reference,))
        for sound in (mono, np.stack([mono + side, mono - side]), said("rms", ("seven",)))
    ]
    values = [score.value for score in TimbreSimilarity(encoder).score(clips)]
    assert values[0] == pytest.approx(values[1], abs=1e-3) and abs(values[0] - values[2]) > 0.02
    other = TimbreSimilarity(ResemblyzerEncoder())
    assert [other.score([clip])[0].value for clip in clips[::-1]] == pytest.approx(values[::-1], abs=1e-5)


def test_span_times_decide_what_is_compared(encoder):
    """No pause to cut at: the times alone say where the voices change."""
    parts = [
        load_bank().utterances["seven", "slt"][0].waveform,
        load_bank().utterances["garden", "rms"][0].waveform,
    ]
    border, end = len(parts[0]) / RATE, sum(map(len, parts)) / RATE
    clip = Clip(
        np.concatenate(parts),
        RATE,
        spans=("seven", "garden"),
        references=(None, parts[1]),
        span_times=((0.0, border), (border, end)),
    )
    score = TimbreSimilarity(encoder).score([clip])[0]
    assert score.value == pytest.approx(1.0, abs=1e-4) and score.parts == {"span_1": score.value}
    moved = dataclasses.replace(clip, span_times=((border, end), (0.0, border)))
    assert TimbreSimilarity(encoder).score([moved])[0].value < 0.95
    silent = dataclasses.replace(clip, waveform=np.concatenate([parts[0], np.zeros_like(parts[1])]))
    assert "span 1 is silent" in TimbreSimilarity(encoder).score([silent])[0].reason


def test_two_scorers_embed_a_sound_once(bank, monkeypatch):
    shared, embedded = ResemblyzerEncoder(), []
    embed = shared.embed_as_they_are
    monkeypatch.setattr(shared, "embed_as_they_are", lambda sounds: embedded.extend(sounds) or embed(sounds))
    reference = said("slt", ("garden",))
    clips = [
        Clip(said("slt", (word,)), RATE, references=(reference,), voices=("slt",))
        for word in load_bank().words[:5]
    ]
    for scorer in (NearestVoice(shared, bank), TimbreSimilarity(shared), NearestVoice(shared, bank)):
        assert not any(score.reason for score in scorer.score([*clips, clips[0]]))
    assert len(embedded) == 5 + 1


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 6))
def test_memory_is_bounded_and_never_changes_an_answer(asked, size):
    calls: list[int] = []

    def compute(sounds):
        calls.extend(int(sound[0]) for sound in sounds)
        return np.stack([np.full(2, sound[0] * 10, np.float32) for sound in sounds])

    cache = EmbeddingCache(compute, 2, max_known=size)
    for start in range(0, len(asked), 4):
        batch = asked[start : start + 4]
        np.testing.assert_array_equal(
            cache([np.full(3, i, np.float32) for i in batch])[:, 0], [10 * i for i in batch]
        )
    assert len(cache) <= size
    assert cache([]).shape == (0, 2)
    if len(set(asked)) <= size:
        assert sorted(calls) == sorted(set(asked))


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


def test_other_weights_in_the_wheel_are_refused(tmp_path, monkeypatch):
    (tmp_path / "pretrained.pt").write_bytes(b"other")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="sha256"):
        ResemblyzerEncoder()


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (
            Clip(
                np.zeros(16_000, np.float32),
                RATE,
                spans=("one",),
                references=(np.ones(9, np.float32),),
                voices=("slt",),
            ),
            "silent",
        ),
        (Clip(np.ones(16_000, np.float32), RATE, spans=("one",)), "no reference"),
        (Clip(np.ones(16_000, np.float32), RATE, spans=("one",), voices=("bob",)), "bob"),
        (
            Clip(np.ones(16_000, np.float32), RATE, references=(np.zeros(16_000, np.float32),)),
            "reference of span 0: silent",
        ),
        (
            Clip(np.ones(16_000, np.float32), RATE, references=(np.ones(900, np.float32),)),
            "reference of span 0: 0.056 s",
        ),
        (
            Clip(np.ones(16_000, np.float32), RATE, references=(None, np.ones(16_000, np.float32))),
            "2 references for 1 spans",
        ),
        (Clip(np.full(16_000, np.nan, np.float32), RATE, references=(np.ones(16_000, np.float32),)), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(encoder, bank, clip, reason):
    scorer = NearestVoice(encoder, bank) if clip.voices else TimbreSimilarity(encoder)
    score = scorer.score([clip])[0]
    assert math.isnan(score.value) and reason in score.reason
