"""The corpus' cast: four characters with a usual voice each, wall colours, camera moves."""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Character:
    """A look that belongs to one person, and the voice this person usually has."""

    name: str
    description: str  # as a prompt says it, after "A"
    voice: str
    hair: Colour
    skin: Colour
    shirt: Colour
    head_size: tuple[float, float]  # half width and half height, pixels at scale 1
    long_hair: bool = False
    beard: bool = False


CHARACTERS = (
    Character(
        "ruby",
        "woman with red hair and a green shirt",
        "slt",
        (190, 50, 30),
        (244, 205, 180),
        (40, 140, 70),
        (15.5, 20.0),
        True,
    ),
    Character(
        "omar",
        "man with black hair and a white shirt",
        "rms",
        (30, 26, 30),
        (168, 116, 82),
        (235, 235, 230),
        (17.0, 21.0),
        False,
        True,
    ),
    Character(
        "alan",
        "man with blond hair and a blue shirt",
        "awb",
        (226, 190, 96),
        (250, 218, 200),
        (50, 80, 180),
        (17.5, 19.5),
    ),
    Character(
        "kurt",
        "man with grey hair and an orange shirt",
        "kal16",
        (150, 152, 158),
        (222, 174, 140),
        (232, 130, 40),
        (15.0, 21.5),
    ),
)

VOICE_DESCRIPTIONS = {
    "slt": "a bright clear voice",
    "rms": "a deep calm voice",
    "awb": "a soft Scottish voice",
    "kal16": "a flat robotic voice",
}

BACKGROUNDS: dict[str, Colour] = {
    "blue": (96, 148, 214),
    "yellow": (232, 212, 120),
    "purple": (150, 112, 190),
    "pink": (238, 168, 186),
    "teal": (70, 160, 160),
    "dark": (54, 58, 72),
}

CAMERA_MOVES = {
    "pan left": "The camera pans left.",
    "pan right": "The camera pans right.",
    "zoom in": "The camera zooms in.",
    "zoom out": "The camera zooms out.",
}
STATIC = "static"

CHARACTER_BY_NAME = {character.name: character for character in CHARACTERS}
CHARACTER_BY_VOICE = {character.voice: character for character in CHARACTERS}
