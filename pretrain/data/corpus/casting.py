"""Which word-voice pairs are trained, which never, and which recordings serve as reference voices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.config import CorpusConfig
from pretrain.randomness import stable_hash

WordVoice = tuple[str, str]  # word, voice
WORDS_PER_REFERENCE = 3


@dataclass(frozen=True)
class Casting:
    """`references`: name -> (voice, its words as (word, take)); no reference says a held-out pair."""

    seen: tuple[WordVoice, ...]
    held_out: tuple[WordVoice, ...]
    references: dict[str, tuple[str, tuple[tuple[str, int], ...]]]


def cast(config: CorpusConfig) -> Casting:
    """Held-out pairs use a word at most once and cycle the voices, so that each stays well covered.

    Raises ValueError when more pairs are held out than there are words.
    """
    bank, rng = load_bank(), rng_for(config.seed, "casting")
    if config.held_out_pairs > len(bank.words):
        raise ValueError(
            f"held_out_pairs: {config.held_out_pairs}; at most one for each of the {len(bank.words)} words"
        )
    words = [str(word) for word in rng.permutation(bank.words)]
    held_out = tuple(
        (word, bank.voices[i % len(bank.voices)]) for i, word in enumerate(words[: config.held_out_pairs])
    )
    seen = tuple(pair for pair in bank.utterances if pair not in held_out)
    references = {}
    for voice in bank.voices:
        spoken = [str(word) for word in rng.permutation([word for word, owner in seen if owner == voice])]
        for k in range(config.references_per_voice):
            chosen = [spoken[(WORDS_PER_REFERENCE * k + i) % len(spoken)] for i in range(WORDS_PER_REFERENCE)]
            takes = [int(rng.integers(len(bank.utterances[word, voice]))) for word in chosen]
            references[f"{voice}_{k}"] = (voice, tuple(zip(chosen, takes, strict=True)))
    return Casting(seen, held_out, references)


def choose_reference(casting: Casting, voice: str, unsaid: set[str], rng: np.random.Generator) -> str:
    """Name of a reference of this voice without a word of `unsaid`, so it holds none of the clip's."""
    fit = [
        name
        for name, (owner, words) in casting.references.items()
        if owner == voice and not unsaid & {word for word, _ in words}
    ]
    if not fit:
        raise ValueError(
            f"references_per_voice: none of {voice}'s references avoids {sorted(unsaid)}; ask for more of "
            "them"
        )
    return str(rng.choice(fit))


def pair_cycle(pairs: tuple[WordVoice, ...], rng: np.random.Generator) -> Iterator[WordVoice]:
    """All pairs in random order, again and again: counts differ by at most one."""
    while True:
        for index in rng.permutation(len(pairs)):
            yield pairs[index]


def rng_for(*parts: object) -> np.random.Generator:
    """Random numbers that belong to the sample: equal on every machine, whatever was drawn before."""
    return np.random.default_rng(stable_hash(*parts))
