"""Given texts with times: SubRip and WebVTT, and which of their cues have sound.

Not by a library: pysubs2 1.8, srt 3.5 and webvtt-py 0.6 each take something for speech that is none (notes,
lines of U+00A0), lose a number that is said or refuse the file, and none replaces entities.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from experiments.preparation.records import Rejection
from pretrain.prompt.characters import broken_character

Cue = tuple[float, float, str]  # start and end in seconds, what is said

ARROW = "-->"
_TIME = re.compile(r"(-?)(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)")
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")
_CHANGE = re.compile(r"(?:^|(?<=\s))>{2,3}(?=\s|\w|$)")  # a new speaker or story, in captions of television
_SPEAKER = re.compile(r"(?:^|(?<=\s))(?:[A-Z][A-Z .']{1,60}:|-)\s")


@dataclass(frozen=True)
class _Block:
    """What stands between two lines of times."""

    times: str
    lines: Sequence[str]


def subtitles(text: str, path: Path) -> tuple[Cue, ...]:
    """(start, end, words) of each cue of SubRip or WebVTT, tags and speaker names left out.

    A cue is what follows its line of times up to the next one, blank lines or not; of WebVTT, whose notes
    stand behind empty lines, up to the first empty line. Raises ValueError with the line of times that cannot
    be read or ends before it starts, with words that hold such a line, and for a file without cues.
    """
    cues: list[Cue] = []
    for block in _blocks(text):
        start_s, end_s = _times(block.times, path)
        words = _said(block.lines)
        if ARROW in words:
            raise ValueError(f"{path}: a line of times stands in the words {_short(words)!r}; mend it")
        if broken := broken_character(words):
            raise ValueError(f"{path}: {broken}")
        if re.search(r"\w", words):
            cues.append((start_s, end_s, words))
    if not cues:
        raise ValueError(f"{path}: no cue with times and words in it; mend it or move it away")
    return tuple(sorted(cues))


def within_sound(cues: Sequence[Cue], seconds: float, source: str) -> tuple[tuple[Cue, ...], list[Rejection]]:
    """Cues cut to a sound of `seconds`, and a rejection for each that has none of it; where that is all of
    them, one for the source."""
    inside = tuple(
        (max(0.0, start_s), min(seconds, end_s), text)
        for start_s, end_s, text in cues
        if start_s < seconds and end_s > 0
    )
    outside = [cue for cue in cues if cue[0] >= seconds or cue[1] <= 0]
    if outside and not inside:
        reason = (
            f"none of the {len(cues)} given times is within its {seconds:.2f} s of sound, the first is "
            f"{cues[0][0]:.2f} to {cues[0][1]:.2f} s; give seconds, and the text of this video"
        )
        return (), [
            Rejection("words", "cue_start_s", round(cues[0][0], 3), round(seconds, 3), reason, source)
        ]
    return inside, [
        Rejection(
            "words",
            "cue_start_s",
            round(start_s, 3),
            round(seconds, 3),
            f"no sound at {start_s:.2f} to {end_s:.2f} s, the given time of {_short(text)!r}: it is not used",
            source,
            start_s=start_s,
            duration_s=end_s - start_s,
        )
        for start_s, end_s, text in outside
    ]


def _blocks(text: str) -> list[_Block]:
    for ending in ("\r\r\n", "\r\n", "\r"):
        text = text.replace(ending, "\n")
    lines = text.split("\n")
    web = lines[0].startswith("WEBVTT")
    at = [place for place, line in enumerate(lines) if ARROW in line]
    numbered = bool(at) and _last(lines[: at[0]]).isdecimal()
    blocks = []
    for place, following in pairwise([*at, len(lines)]):
        own = lines[place + 1 : following]
        if web and "" in own:
            own = own[: own.index("")]
        elif numbered and following < len(lines) and (number := _last(own)).isdecimal():
            own = own[: max(i for i, line in enumerate(own) if line.strip() == number)]
        blocks.append(_Block(lines[place], own))
    return blocks


def _last(lines: Sequence[str]) -> str:
    """The last line that is not blank, "" where there is none."""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _times(line: str, path: Path) -> tuple[float, float]:
    found = list(_TIME.finditer(line))[:2]
    times = [_seconds(match) for match in found]
    if len(times) != 2 or times[1] <= times[0]:
        raise ValueError(f"{path}: cue {_short(line)!r} has no start before its end; mend it")
    before, behind = line[: found[0].start()].strip(), line[found[1].end() :].split()
    if (before and not before.isdecimal()) or any(":" not in setting for setting in behind):
        raise ValueError(
            f"{path}: cue {_short(line)!r} has words in its line of times; put them into their own"
        )
    return times[0], times[1]


def _said(lines: Sequence[str]) -> str:
    words = _TAG.sub(" ", " ".join(lines))
    words = _ENTITY.sub(lambda entity: html.unescape(entity[0]), words)
    return " ".join(_SPEAKER.sub(" ", _CHANGE.sub(" ", words)).split())


def _seconds(match: re.Match[str]) -> float:
    sign, hours, minutes, seconds, fraction = match.groups()
    found = 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(fraction.ljust(3, "0")) / 1000
    return -found if sign else found


def _short(text: str) -> str:
    return text.strip()[:60]
