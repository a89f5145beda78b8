"""How the corpus words its prompts: a few paraphrases of who, where, in which voice and what.

Each text of one speaker belongs to one of three splits by its hash, so that the prompt sets of pretraining,
alignment and its evaluation can never share a text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pretrain.data.corpus.cast import BACKGROUNDS, CAMERA_MOVES, CHARACTER_BY_NAME, STATIC, VOICE_DESCRIPTIONS
from pretrain.data.corpus.plan import SoundEvent, Turn
from pretrain.randomness import stable_hash

PRETRAIN, ALIGN_TRAIN, ALIGN_HELD_OUT = "pretrain", "align_train", "align_held_out"
_SPLITS = (*[PRETRAIN] * 6, ALIGN_TRAIN, ALIGN_HELD_OUT)

_ONE_SPEAKER = (
    "A {who} on a {wall} background speaks{voice}: <S>{word}<E>.",
    "A {who} says{voice}: <S>{word}<E>. The background is {wall}.",
    "On a {wall} background, a {who} says <S>{word}<E>{voice}.",
    "Portrait of a {who}, {wall} background, speaking{voice}: <S>{word}<E>.",
    "<S>{word}<E>, says a {who}{voice} on a {wall} background.",
    "A {who} in front of a {wall} wall talks{voice} and says <S>{word}<E>.",
)
_TWO_SPEAKERS = (
    "On a {wall} background, a {left} on the left says{voice}: <S>{first}<E>. A {right} on the right "
    "answers: <S>{second}<E>.",
    "A {left} says{voice}: <S>{first}<E>. Then a {right} on the right replies: <S>{second}<E>. The "
    "background is {wall}.",
)
_VOICE_ALONE = (
    "{voice} says: <S>{word}<E>.",
    "We hear {voice}: <S>{word}<E>.",
    "<S>{word}<E>, says {voice}.",
    "A recording of {voice} saying <S>{word}<E>.",
    "Only {voice} speaking: <S>{word}<E>.",
)
_TURNS_ALONE = "{one} says <S>{first}<E>, then {two} says <S>{second}<E>."


def split_of(text: str) -> str:
    """Which prompt set a text belongs to."""
    return _SPLITS[stable_hash("prompt split", text) % len(_SPLITS)]


def one_speaker_texts(
    turn: Turn, described_voice: str, split: str, camera: str = STATIC
) -> Iterator[tuple[str, str]]:
    """Every (text, background) of the split for this face and word; `described_voice` "" = not described."""
    for wall, template in itertools.product(BACKGROUNDS, _ONE_SPEAKER):
        voice = f" in {VOICE_DESCRIPTIONS[described_voice]}" if described_voice else ""
        text = template.format(
            who=CHARACTER_BY_NAME[turn.character].description, wall=wall, voice=voice, word=turn.word
        )
        if split_of(text) == split:
            yield (text if camera == STATIC else f"{text} {CAMERA_MOVES[camera]}"), wall


def two_speaker_texts(turns: tuple[Turn, Turn], described_voice: str) -> Iterator[tuple[str, str]]:
    """Every (text, background) for a dialogue; at most the first speaker's voice is described."""
    left, right = (CHARACTER_BY_NAME[turn.character].description for turn in turns)
    voice = f" in {VOICE_DESCRIPTIONS[described_voice]}" if described_voice else ""
    for wall, template in itertools.product(BACKGROUNDS, _TWO_SPEAKERS):
        yield (
            template.format(
                left=left, right=right, wall=wall, voice=voice, first=turns[0].word, second=turns[1].word
            ),
            wall,
        )


def sound_texts(turns: tuple[Turn, ...], described_voice: str) -> list[str]:
    """Every text for speech that is heard and not seen: one word, or two in turns."""
    voice = VOICE_DESCRIPTIONS[described_voice] if described_voice else "a voice"
    if len(turns) == 1:
        return [_capital(template.format(voice=voice, word=turns[0].word)) for template in _VOICE_ALONE]
    return [
        _capital(
            _TURNS_ALONE.format(one=voice, two="another voice", first=turns[0].word, second=turns[1].word)
        )
    ]


def talk_text(turns: tuple[Turn, ...], wall: str) -> str:
    """One person's words in a row, each a span of its own."""
    speech = " ".join(f"<S>{turn.word}<E>" for turn in turns)
    return f"A {CHARACTER_BY_NAME[turns[0].character].description} talks on a {wall} background: {speech}."


def event_text(event: SoundEvent, wall: str) -> str:
    """A sound event's text; without a wall it is heard and not seen."""
    where = f" on a {wall} background" if wall else ""
    if event.name == "ball":
        return (
            f"A {event.colour} ball bounces{where} with {event.tone}."
            if wall
            else f"The sound of a bouncing ball: {event.tone}."
        )
    return (
        f"A {event.colour} light flashes{where} with {event.tone}."
        if wall
        else f"The sound of a flashing light: {event.tone}."
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
