"""Long silence does not move a voice; sounds with next to no voice say so."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.corpus.bank import load_bank
from rewards.base import Unscorable
from rewards.parking import Parking
from rewards.sound import STEP
from rewards.timbre.encoder import by_length
from rewards.timbre.resemblyzer import ResemblyzerEncoder
from rewards.timbre.silence import KEPT_S, check_sound, without_silence
from rewards.timbre.similarity import TimbreSimilarity
from rewards.types import Clip

RATE = 16_000
KEPT = round(KEPT_S * RATE)


@pytest.fixture(scope="module")
def encoder():
    return ResemblyzerEncoder()


def word(text: str, voice: str = "rms") -> np.ndarray:
    return load_bank().utterances[text, voice][0].waveform


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def test_half_a_second_is_kept_on_each_side_of_a_sound():
    burst = np.ones(10 * STEP, np.float32)
    sound = np.concatenate([silence(2), burst, silence(3), burst, silence(1)])
    short = without_silence(sound)
    assert len(short) == 2 * len(burst) + 4 * KEPT
    np.testing.assert_array_equal(short[:KEPT], 0.0)
    np.testing.assert_array_equal(short[KEPT : KEPT + len(burst)], 1.0)
    np.testing.assert_array_equal(without_silence(short), short)


@given(st.integers(1, 3 * RATE), st.integers(0, 9))
def test_sound_without_long_silence_is_the_same_object(length, seed):
    sound = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    assert without_silence(sound) is sound


def test_digital_silence_and_nothing_are_left_alone():
    for sound in (silence(1), silence(0)):
        assert without_silence(sound) is sound


@pytest.mark.parametrize(
    ("before", "after", "noise_dbfs"), [(0, 4.7, None), (2.3, 2.4, None), (4.7, 0, None), (0, 4.7, -70)]
)
def test_a_reference_and_a_clip_that_are_mostly_silence_score_as_without_it(
    encoder, before, after, noise_dbfs
):
    speech = word("seven")[: round(0.3 * RATE)]
    padded = np.concatenate([silence(before), speech, silence(after)])
    if noise_dbfs is not None:
        noise = np.random.default_rng(0).standard_normal(len(padded)) * 10 ** (noise_dbfs / 20)
        padded = (padded + noise).astype(np.float32)
    other = np.concatenate([word("green"), silence(0.3), word("garden")])
    clips = [
        Clip(other, RATE, references=(speech,)),
        Clip(other, RATE, references=(padded,)),
        Clip(padded, RATE, references=(other,)),
    ]
    plain, *silent = [score.value for score in TimbreSimilarity(encoder).score(clips)]
    assert silent == pytest.approx([plain, plain], abs=0.03)
    raw = encoder.embed_as_they_are([other * 0.03 / other.std(), padded * 0.03 / padded.std()])
    assert noise_dbfs is not None or plain - float(raw[0] @ raw[1]) > 0.04  # what silence would cost


def test_a_long_pause_inside_does_not_move_a_voice(encoder):
    joined = np.concatenate([word("green"), silence(0.3), word("garden")])
    apart = np.concatenate([word("green"), silence(6), word("garden")])
    first, second = encoder.embed([joined, apart])
    (raw,) = encoder.embed_as_they_are([apart * 0.03 / apart.std()])
    assert float(first @ second) > 0.93 and float(first @ second) > float(first @ raw) + 0.05


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.18])
def test_next_to_no_voice_is_a_reason(encoder, seconds):
    blip = np.concatenate([silence(1), word("seven")[3200 : 3200 + round(seconds * RATE)], silence(2)])
    sound = word("seven")
    scores = TimbreSimilarity(encoder).score(
        [Clip(sound, RATE, references=(blip,)), Clip(blip, RATE, references=(sound,))]
    )
    assert all(math.isnan(score.value) for score in scores)
    assert "reference of span 0: " in scores[0].reason and "at least 0.2 s" in scores[0].reason
    assert scores[1].reason.startswith("span 0: ")
    with pytest.raises(Unscorable, match=r"at least 0\.2 s"):
        check_sound(blip)


def test_by_length_is_given_the_shortened_sounds(monkeypatch):
    from rewards.timbre import redimnet, wavlm_ecapa

    seen: list[int] = []
    assert by_length is redimnet.by_length is wavlm_ecapa.by_length
    for module, encoder in (
        (redimnet, redimnet.ReDimNetEncoder),
        (wavlm_ecapa, wavlm_ecapa.WavlmEcapaEncoder),
    ):
        monkeypatch.setattr(module, "by_length", lambda net, sounds, device: seen.extend(map(len, sounds)))
        bare: Any = object.__new__(encoder)
        bare._net, bare._device, bare.is_seed_tts = None, "cpu", False
        bare._parking = Parking("", lambda: ())
        long = np.concatenate([np.ones(RATE, np.float32), silence(4)])
        bare._embed([long])
        bare.is_seed_tts = True
        bare._embed([long])
    assert seen == [RATE + KEPT, RATE + KEPT, RATE + KEPT, 5 * RATE]  # the published file: at full length
