"""Words: errors counted exactly, real speech recognised, clips that cannot be scored."""

import dataclasses
import math

import numpy as np
import pytest

from pretrain.data.corpus.bank import load_bank
from rewards.speech.intelligibility import Intelligibility
from rewards.speech.recognizer import Recognizer
from rewards.speech.settings import REWARD
from rewards.speech.sphinx import Sound, Sphinx, front_end
from rewards.speech.wer import WordErrorRate, set_word_error_rate
from rewards.types import Clip

RATE = 16_000


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(load_bank().words)


def spoken(word: str, voice: str, gain: float = 1.0) -> Clip:
    waveform = load_bank().utterances[word, voice][0].waveform
    track = np.zeros(16_640, np.float32)
    track[2000 : 2000 + len(waveform)] = waveform * gain
    return Clip(track, RATE, spans=(word,))


def sound(clip: Clip) -> np.ndarray:
    assert clip.waveform is not None
    return clip.waveform


def test_bank_words_are_recognised_at_any_loudness(recognizer):
    words = load_bank().words[::3]
    clips = [
        spoken(word, voice, gain)
        for word in words
        for voice, gain in (("slt", 1.0), ("rms", 0.05), ("awb", 0.3))
    ]
    scores = WordErrorRate(recognizer).score(clips)
    assert set_word_error_rate(scores) <= 0.05
    assert sum(score.text == clip.spans[0] for score, clip in zip(scores, clips, strict=True)) >= 0.95 * len(
        clips
    )


def test_batch_is_the_same_as_one_by_one_in_any_order(recognizer):
    scorer = WordErrorRate(recognizer)
    clips = [spoken(word, "rms") for word in load_bank().words[:4]]
    batch = [score.text for score in scorer.score(clips)]
    assert batch == [scorer.score([clip])[0].text for clip in clips]
    assert batch[::-1] == [score.text for score in scorer.score(clips[::-1])]


def test_what_was_heard_before_changes_no_score(recognizer):
    loud, quiet = sound(spoken("seven", "rms")), sound(spoken("green", "slt", 0.02))
    noise = 0.3 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    alone = recognizer.spot([quiet])
    recognizer.spot([noise, loud])
    assert recognizer.spot([quiet]) == alone


def test_processes_give_what_one_process_gives(recognizer):
    sounds = [sound(spoken(word, "awb")) for word in load_bank().words[:10]]
    with Recognizer(load_bank().words, num_processes=2) as pool:
        assert pool.transcribe(sounds) == recognizer.transcribe(sounds)


def test_two_words_with_a_pause_are_two_words(recognizer):
    clip = Clip(
        np.concatenate([sound(spoken("seven", "rms")), sound(spoken("green", "slt"))]),
        RATE,
        spans=("seven", "green"),
    )
    assert WordErrorRate(recognizer).score([clip])[0].text == "seven green"


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (Clip(np.zeros(16_000, np.float32), RATE, spans=("one",)), "silent"),
        (Clip(np.full(16_000, np.nan, np.float32), RATE, spans=("one",)), "NaN"),
        (Clip(np.ones(100, np.float32), RATE, spans=("one",)), "0.2 s"),
        (Clip(np.ones(16_000, np.float32), RATE, spans=()), "no speech text"),
        (Clip(None, RATE, spans=("one",)), "no sound"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(recognizer, clip, reason):
    good = spoken("seven", "rms")
    bad_score, good_score = WordErrorRate(recognizer).score([clip, good])
    assert math.isnan(bad_score.value) and reason in bad_score.reason
    assert good_score.value == 0.0 and not good_score.reason


def test_stereo_and_other_rates_are_read_as_mono_16khz(recognizer):
    from scipy.signal import resample_poly

    mono = spoken("window", "slt")
    stereo = Clip(np.stack([sound(mono), sound(mono)]), RATE, spans=mono.spans)
    faster = Clip(resample_poly(sound(mono), 3, 1).astype(np.float32), 3 * RATE, spans=mono.spans)
    assert [score.text for score in WordErrorRate(recognizer).score([mono, stereo, faster])] == ["window"] * 3


def test_word_without_pronunciation_is_named():
    with pytest.raises(ValueError, match="zzyxq"):
        Recognizer(["one", "zzyxq"])


def test_a_sound_that_raises_leaves_the_decoders_ready():
    sphinx = Sphinx(("doctor", "garden"), REWARD)
    heard = front_end(sound(spoken("doctor", "slt")), REWARD)
    before = sphinx.listen(heard), sphinx.spot(heard)
    for decode in (sphinx.listen, sphinx.spot):
        with pytest.raises(IndexError):
            decode(Sound(b"", 0.0))
    assert (sphinx.listen(heard), sphinx.spot(heard)) == before and before[0] == "doctor"


def test_a_broken_recogniser_raises():
    class Broken:
        name = "broken"

        def transcribe(self, waveforms):
            raise RuntimeError("model lost")

    with pytest.raises(RuntimeError, match="model lost"):
        WordErrorRate(Broken()).score([spoken("one", "slt")])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("今天天气很好", "English only, the text has Han"),
        ("мой дом", "English only, the text has Cyrillic"),
        ("seven 七", "English only, the text has Han"),
        ("seven zzyxq", "zzyxq: not in the recogniser's vocabulary"),
        ("1,000", "1000: not in the recogniser's vocabulary"),
    ],
)
def test_words_that_cannot_be_heard_are_nan_with_their_reason(recognizer, text, reason):
    foreign = dataclasses.replace(spoken("seven", "rms"), spans=(text,))
    for scorer in (WordErrorRate(recognizer), Intelligibility(recognizer)):
        bad, good = scorer.score([foreign, spoken("seven", "rms")])
        assert math.isnan(bad.value) and reason in bad.reason and not good.reason


def test_the_prompts_typography_changes_no_score(recognizer):
    plain = spoken("seven", "rms")
    curly = dataclasses.replace(plain, spans=("\ufeff‘Se\u00adｖｅｎ’…",))
    for scorer in (WordErrorRate(recognizer), Intelligibility(recognizer)):
        first, second = scorer.score([plain, curly])
        assert first.value == second.value
