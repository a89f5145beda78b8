"""Words that a model of the corpus has been trained on: those spoken, and those of its descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import product

from pretrain.data.corpus import texts
from pretrain.data.corpus.bank import vocabulary
from pretrain.data.corpus.cast import BACKGROUNDS, CAMERA_MOVES, CHARACTERS, VOICE_DESCRIPTIONS
from pretrain.data.corpus.plan import SoundEvent, Turn
from pretrain.data.corpus.script import BALL_COLOURS, LIGHT_COLOURS
from pretrain.data.corpus.sound import THUDS_HZ, TONES_HZ
from pretrain.prompt import SPEECH_END, SPEECH_START, ParsedPrompt, parse

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SHOWN = 8


@cache
def spoken_words() -> frozenset[str]:
    """The words of the speech bank."""
    return frozenset(vocabulary())


@cache
def described_words() -> frozenset[str]:
    """The words of all descriptions that the corpus writes."""
    return frozenset(word for text in _texts() for word in _words(_described(parse(text))))


def unknown_words(prompt: ParsedPrompt) -> tuple[list[str], list[str]]:
    """(spoken words, words of the description) that the corpus does not have, each once and in order."""
    spoken = [word for span in prompt.spans for word in _words(span.text)]
    return (
        list(dict.fromkeys(word for word in spoken if word not in spoken_words())),
        list(dict.fromkeys(word for word in _words(_described(prompt)) if word not in described_words())),
    )


def vocabulary_warning(prompt: ParsedPrompt) -> str:
    """What a model of the corpus does not know of a prompt, "" where it knows all words."""
    parts = [
        f"{what} {_listed(words)}"
        for what, words in zip(("to say", "to show"), unknown_words(prompt), strict=True)
        if words
    ]
    return f"words that the mini was never trained on: {'; '.join(parts)}" if parts else ""


def _texts() -> Iterator[str]:
    """Texts of all kinds; who, where, voice and sound are all in some, what is said is always one word."""
    voices, splits = ("", *VOICE_DESCRIPTIONS), (texts.PRETRAIN, texts.ALIGN_TRAIN, texts.ALIGN_HELD_OUT)
    turns = [Turn("one", character.voice, character.name, 0, 0.0, "") for character in CHARACTERS]
    for turn, voice, split in product(turns, voices, splits):
        yield from (text for text, _ in texts.one_speaker_texts(turn, voice, split))
    yield from CAMERA_MOVES.values()
    for voice in voices:
        yield from (text for text, _ in texts.two_speaker_texts((turns[0], turns[1]), voice))
        yield from texts.sound_texts((turns[0],), voice) + texts.sound_texts((turns[0], turns[1]), voice)
    yield from (texts.talk_text((turn,), wall) for turn, wall in product(turns, BACKGROUNDS))
    events = (("ball", BALL_COLOURS, THUDS_HZ), ("light", LIGHT_COLOURS, TONES_HZ))
    for name, colours, tones in events:
        for colour, tone, wall in product(colours, tones, ("", *BACKGROUNDS)):
            yield texts.event_text(SoundEvent(name, colour, tone, 0.0, 1.0), wall)


def _described(prompt: ParsedPrompt) -> str:
    """The text without its spans."""
    pieces, end = [], 0
    for span in prompt.spans:
        pieces.append(prompt.text[end : span.start - len(SPEECH_START)])
        end = span.end + len(SPEECH_END)
    return " ".join([*pieces, prompt.text[end:]])


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(map(repr, words[:_SHOWN])) + more
