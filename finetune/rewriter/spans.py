"""Keeps spoken words byte for byte through a rewrite: removed before, restored after, checked.

A model is shown `[SPEECH 1]` in place of `<S>words<E>`, so it cannot misspell them. Completions are checked
all the same: they may contain marks of their own, or characters that a text encoder folds into marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.prompt import SPEECH_END, SPEECH_START, parse

PLACEHOLDER = "SPEECH"

# after removing white space
_MARK_LIKE = re.compile(r"<[/\\]?(?:s|e|pad|unk|extra_id_\d+)[/\\]?>", re.IGNORECASE)
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINERS = frozenset("\u200c\u200d")


@dataclass(frozen=True)
class Protected:
    """A prompt with `[NAME i]` for span i (from 1), and each span's words; NAME is not in the prompt."""

    text: str
    words: tuple[str, ...]
    name: str

    def placeholder(self, number: int) -> str:
        """What stands for span `number`, counted from 1."""
        return f"[{self.name} {number}]"

    def restore(self, answer: str) -> str:
        """The completion with placeholders replaced by spans; marks that the model put around are dropped.

        An unknown or misspelled placeholder stays as it is, and `check` reports it.
        """
        around = rf"(?:{SPEECH_START}\s*)?\[{re.escape(self.name)} (\d{{1,4}})\](?:\s*{SPEECH_END})?"

        def span(found: re.Match[str]) -> str:
            number = int(found[1])
            return (
                SPEECH_START + self.words[number - 1] + SPEECH_END
                if 1 <= number <= len(self.words)
                else found[0]
            )

        return re.sub(around, span, answer)

    def check(self, source: str, rewritten: str) -> str:
        """As `check_spans`, for a restored `rewritten`; a placeholder that is left is wrong too."""
        unspoken = "\n".join(outside(rewritten) or [rewritten])
        left = re.search(rf"\[\s*{re.escape(self.name)}\b[^\]\n]{{0,20}}\]?", unspoken, re.IGNORECASE)
        return (
            f"{left[0]!r} is left in place of speech; there are {len(self.words)} spans"
            if left
            else check_spans(source, rewritten)
        )


def protect(prompt: str) -> Protected:
    """Takes the spans out. Raises ValueError for a prompt whose marks are wrong (`pretrain.prompt.parse`)."""
    parsed = parse(prompt)
    name = PLACEHOLDER
    while name.casefold() in prompt.casefold():
        name += "X"
    pieces, end = [], 0
    for number, span in enumerate(parsed.spans, start=1):
        pieces += [prompt[end : span.start - len(SPEECH_START)], f"[{name} {number}]"]
        end = span.end + len(SPEECH_END)
    return Protected("".join([*pieces, prompt[end:]]), tuple(span.text for span in parsed.spans), name)


def outside(text: str) -> list[str] | None:
    """Unspoken text: before, between and after the spans. None where the marks are wrong."""
    try:
        spans = parse(text).spans
    except ValueError:
        return None
    starts = [0, *(span.end + len(SPEECH_END) for span in spans)]
    ends = [*(span.start - len(SPEECH_START) for span in spans), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def map_outside(text: str, change: Callable[[str], str]) -> str:
    """`text` with unspoken parts mapped and spans kept; unchanged where the marks are wrong."""
    pieces = outside(text)
    if pieces is None:
        return text
    spans = [SPEECH_START + span.text + SPEECH_END for span in parse(text).spans]
    return "".join(change(piece) + span for piece, span in zip(pieces, [*spans, ""], strict=True))


def map_spoken(text: str, change: Callable[[str], str]) -> str:
    """`text` with each span, marks and words, changed; all of it as it is where the marks are wrong."""
    pieces = outside(text)
    if pieces is None:
        return text
    spans = [change(SPEECH_START + span.text + SPEECH_END) for span in parse(text).spans]
    return "".join(piece + span for piece, span in zip(pieces, [*spans, ""], strict=True))


def check_spans(source: str, rewritten: str) -> str:
    """ "" where `rewritten` has every span of `source` unchanged and in order, else a one-line reason.

    Also refused, where the source has not the same: a combining character right behind a mark and what folds
    into a mark under NFKC, as text encoders fold (either would make or break a mark); direction overrides,
    which show spoken words in another order; control characters; half a surrogate pair. Raises ValueError
    where the marks of the source itself are wrong.
    """
    wanted = [span.text for span in parse(source).spans]
    try:
        found = [span.text for span in parse(rewritten).spans]
        rewritten.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair, which is no character"
    except ValueError as error:
        return str(error)
    if len(found) != len(wanted):
        return f"{len(found)} speech spans, expected {len(wanted)}"
    if found != wanted:
        if Counter(found) == Counter(wanted):
            return "speech spans in another order"
        first = next(
            number
            for number, pair in enumerate(zip(wanted, found, strict=True), start=1)
            if pair[0] != pair[1]
        )
        return f"speech span {first} altered"
    return _strange(outside(source) or [], outside(rewritten) or [])


def _strange(source: list[str], rewritten: list[str]) -> str:
    for number, (before, after) in enumerate(zip(source[1:], rewritten[1:], strict=True), start=1):
        if _combines(after) and not _combines(before):
            return f"a combining character right behind speech span {number} changes its mark"
    added = _signs(rewritten) - _signs(source)
    return f"{', '.join(sorted(added))} added outside the spans" if added else ""


def _combines(text: str) -> bool:
    return bool(text) and (unicodedata.category(text[0]).startswith("M") or text[0] in _JOINERS)


def _signs(pieces: list[str]) -> Counter[str]:
    """What looks like a mark, and characters that change how others are shown, by name."""
    found: Counter[str] = Counter()
    for piece in pieces:
        folded = "".join(
            sign
            for sign in unicodedata.normalize("NFKC", piece)
            if not sign.isspace() and unicodedata.category(sign) != "Cf"
        )
        found.update(f"{mark!r}" for mark in _MARK_LIKE.findall(folded))
        found.update(f"U+{ord(sign):04X}" for sign in piece if sign in _BIDI or _is_control(sign))
    return found


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) == "Cc" and sign not in "\t\n\r"
