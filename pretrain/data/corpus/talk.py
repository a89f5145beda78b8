"""Four-second clips of one person saying several words with pauses, for training and testing sync networks.

The three sets share no word, so a network is tested on words outside both training sets.
"""

from __future__ import annotations

import itertools

import numpy as np

from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.cast import BACKGROUNDS, CHARACTERS, STATIC
from pretrain.data.corpus.casting import Casting, rng_for
from pretrain.data.corpus.config import CorpusConfig
from pretrain.data.corpus.plan import TALK_FRAMES, ClipPlan, Turn
from pretrain.data.corpus.script import levels
from pretrain.data.corpus.sound import num_samples
from pretrain.data.corpus.texts import talk_text

TEST_WORDS = 6  # of 20; talk_a and talk_b take turns with the others
LEAD_S, TAIL_S = (0.05, 0.45), 0.05
PAUSE_S = (0.06, 0.65)
SCALE = (0.7, 1.15)
X, Y = (24.0, 40.0), (25.0, 33.0)  # centre of the head, pixels


def talk_sets(config: CorpusConfig, casting: Casting) -> dict[str, list[ClipPlan]]:
    """talk_a, talk_b (training of a sync reward and its judge) and talk_test; without held-out pairs."""
    words = talk_words(config)
    counts = {"talk_a": config.talk_a, "talk_b": config.talk_b, "talk_test": config.talk_test}
    return {
        name: [_talk(config, casting, name, index, words[name]) for index in range(count)]
        for name, count in counts.items()
    }


def talk_words(config: CorpusConfig) -> dict[str, tuple[str, ...]]:
    """The words of each set: disjoint, all of the bank together."""
    words = [str(word) for word in rng_for(config.seed, "talk", "words").permutation(load_bank().words)]
    training = words[TEST_WORDS:]
    return {
        "talk_a": tuple(training[::2]),
        "talk_b": tuple(training[1::2]),
        "talk_test": tuple(words[:TEST_WORDS]),
    }


def _talk(config: CorpusConfig, casting: Casting, name: str, index: int, words: tuple[str, ...]) -> ClipPlan:
    """Every voice comes from every character; where the head stands and how large it is is drawn."""
    rng = rng_for(config.seed, name, index)
    voices = load_bank().voices
    who, voice = list(itertools.product(CHARACTERS, voices))[index % (len(CHARACTERS) * len(voices))]
    turns = _turns([word for word in words if (word, voice) in casting.seen], voice, who.name, rng)
    wall = str(rng.choice(list(BACKGROUNDS)))
    place = (
        round(float(rng.uniform(*X)), 2),
        round(float(rng.uniform(*Y)), 2),
        round(float(rng.uniform(*SCALE)), 3),
    )
    text = talk_text(turns, wall)
    return ClipPlan(
        f"{name}-{index:05d}",
        name,
        "talk",
        text,
        TALK_FRAMES,
        turns,
        None,
        wall,
        STATIC,
        place=place,
        **levels(rng, config.noisy_share),
    )


def _turns(words: list[str], voice: str, character: str, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Words with random pauses until the next would not end within the clip; no word twice in a row."""
    turns: list[Turn] = []
    at_s = float(rng.uniform(*LEAD_S))
    while True:
        word = str(rng.choice([word for word in words if not turns or word != turns[-1].word]))
        takes = load_bank().utterances[word, voice]
        take = int(rng.integers(len(takes)))
        end_s = at_s + len(takes[take].waveform) / SAMPLE_RATE_HZ
        if end_s + TAIL_S > num_samples(TALK_FRAMES) / SAMPLE_RATE_HZ:
            return tuple(turns)
        turns.append(Turn(word, voice, character, take, at_s, reference=""))
        at_s = end_s + float(rng.uniform(*PAUSE_S))
