"""Speech marks that are nearly right: full width, in lower case, with blanks, escaped for HTML, in other
brackets or letters that look the same. A text encoder reads them as description, so nothing would be said.

A text is folded (escapes resolved, compatible characters and look-alikes replaced, invisible signs dropped)
and searched for bracketed names of marks; what is not written exactly as a mark is a near miss. Brackets that
ordinary text has around single letters, as in `shirt(s)`, count only in pairs of start and end.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from pretrain.prompt.characters import is_invisible
from pretrain.prompt.marks import MARKS, SPEECH_END, SPEECH_START, TIMBRE


@dataclass(frozen=True)
class NearMark:
    """`found`, which stands at `start` in the text, was probably meant as `meant`."""

    start: int
    found: str
    meant: str

    @property
    def message(self) -> str:
        """One line for the user."""
        where = f"{_shown(self.found)} at character {self.start + 1}"
        if self.meant == TIMBRE:
            return f"{where} is a special token; remove it, {TIMBRE} is put in after every {SPEECH_START}"
        return f"{where} is no speech mark and nothing would be said; did you mean {self.meant}?"


_SPOKEN = frozenset(
    ["s", "speech", "speechstart", "startspeech", "startofspeech", "sos", "spk", "speak", "speaking"]
)
_UNSPOKEN = frozenset(["e", "speechend", "endspeech", "endofspeech", "eos"])
# Names that in angle brackets can be nothing but a mark; other brackets have them in ordinary text.
_STARTS = _SPOKEN | {
    *("bos", "speaks", "speaker", "spoken", "say", "says", "saying", "talk", "talking", "voice", "dialog"),
    *(
        "dialogue",
        "quote",
        "start",
        "begin",
        "utterance",
        "utt",
        "说",
        "說",
        "话",
        "語音",
        "语音",
        "开始",
        "開始",
    ),
}
_ENDS = _UNSPOKEN | {"end", "ends", "eot", "stop", "fin", "完", "终", "終", "结束", "結束"}

_QUOTES = "\ue000\ue001"  # stand for « » 《 》 and their like
_LOOK_ALIKE = str.maketrans(
    {
        **dict.fromkeys("˂ᐸ≪≺≤⩽❬❮❰⧼⟨⟪⦑", "<"),
        **dict.fromkeys("˃ᐳ≫≻≥⩾❭❯❱⧽⟩⟫⦒", ">"),
        **dict.fromkeys("〈《«‹", _QUOTES[0]),
        **dict.fromkeys("〉》»›", _QUOTES[1]),
        **dict.fromkeys("【〔〖〘⟦", "["),
        **dict.fromkeys("】〕〗〙⟧", "]"),
        **dict.fromkeys("ѕсσςꜱᏚꓢ", "s"),
        **dict.fromkeys("еєεᴇ℮Ꭼꓰ", "e"),
        **dict.fromkeys("∕⁄", "/"),
    }
)
_ESCAPED = re.compile(
    r"&(?:amp;){0,4}(?:#0*\d{2,5}|#x0*[0-9a-f]{2,4}|[lr](?:ang|saquo|aquo|sqb|cub|par|brack|brace));"
    r"|&(?:amp;){0,4}[lg]t;?"
    r"|%(?:25){0,4}3[ce]|%2f"
    r"|\\{1,4}(?:u00|x)3[ce]",
    re.IGNORECASE,
)
_SUSPECT = re.compile(
    r"extra|[<>\[({&%\\≮≯＜＞﹤﹥（［｛" + "".join(map(chr, _LOOK_ALIKE)) + "]", re.IGNORECASE
)
_EXACT = re.compile("|".join(map(re.escape, MARKS)))
_FILL = r"""[\s/|\\_.:;,'"`*~!^=-]*"""
_NAME = r"(?P<name>[a-z\u4e00-\u9fff](?:[a-z\s_-]{0,24}[a-z]|[\u4e00-\u9fff])?)\d{0,2}"
# Opening brackets in a row are taken at once (++): a text of nothing else costs no more than one.
_ATTRIBUTES = r"(?:\s+[\w:-]+\s*=[^<>]*)?"
_ANGLED = re.compile(
    rf"(?<![<{_QUOTES[0]}])[<{_QUOTES[0]}]++(?P<before>{_FILL}){_NAME}{_ATTRIBUTES}(?P<after>{_FILL})[>{_QUOTES[1]}]+"
)
_BRACKETED = (
    re.compile(rf"(?<!\[)\[++(?P<before>{_FILL}){_NAME}{_FILL}\]+"),
    re.compile(rf"(?<!\{{)\{{++(?P<before>{_FILL}){_NAME}{_FILL}\}}+"),
)
_ROUND_START = re.compile(r"(?<![^\W_])\(s\)(?=\S)")
_ROUND_END = re.compile(r"(?<=\S)\((?:e|/[se])\)")
_SPECIAL = re.compile(r"<[^<>\w]*extra[\s_-]*id[\s_-]*\d*[^<>\w]*>?|extra_id_?\d+")


@lru_cache(256)  # a prompt is parsed several times in a row
def near_mark(text: str) -> NearMark | None:
    """The first near miss of a mark, None where there is none."""
    if not _SUSPECT.search(_EXACT.sub("", text)):
        return None
    folded = _Folded(text)
    found = [*_angled(folded), *_paired(folded), *_special(folded)]
    return min(found, key=lambda near: near.start, default=None)


def _angled(folded: _Folded) -> list[NearMark]:
    near = []
    for match in _ANGLED.finditer(folded.text):
        quoted = any(sign in match[0] for sign in _QUOTES)
        starts, ends = (_SPOKEN, _UNSPOKEN) if quoted else (_STARTS, _ENDS)
        meant = _meant(match, starts, ends)
        start, found = folded.original(match)
        if meant and found != meant and not (quoted and len(match["name"]) > 1):
            near.append(NearMark(start, found, meant))
    return near


def _paired(folded: _Folded) -> list[NearMark]:
    """A start and a later end in other brackets of one kind; round ones only as capitals at the words."""
    near = []
    for pattern in _BRACKETED:
        marks = [(match, _meant(match, _SPOKEN, _UNSPOKEN)) for match in pattern.finditer(folded.text)]
        start = next((match for match, meant in marks if meant == SPEECH_START), None)
        if start and any(meant == SPEECH_END and match.start() > start.end() for match, meant in marks):
            near.append(NearMark(*folded.original(start), SPEECH_START))
    starts, ends = (
        [pair for pair in map(folded.original, pattern.finditer(folded.text)) if _is_capital(pair[1])]
        for pattern in (_ROUND_START, _ROUND_END)
    )
    if starts and ends and starts[0][0] < ends[-1][0]:
        near.append(NearMark(*starts[0], SPEECH_START))
    return near


def _is_capital(text: str) -> bool:
    return any(map(str.isupper, text))


def _special(folded: _Folded) -> list[NearMark]:
    pairs = (folded.original(match) for match in _SPECIAL.finditer(folded.text))
    return [NearMark(start, found, TIMBRE) for start, found in pairs if found != TIMBRE]


def _meant(match: re.Match[str], starts: frozenset[str], ends: frozenset[str]) -> str:
    """The mark that a bracketed name stands for, "" for none; a slash before the name ends what it starts."""
    plain = re.sub(r"[\s_-]", "", match["name"])
    closing = "/" in match["before"] or "\\" in match["before"]
    if plain in ends or (plain in starts and closing):
        return SPEECH_END
    return SPEECH_START if plain in starts else ""


class _Folded:
    """A text in lower case with look-alikes and escapes replaced; `ends[i]`: of folded character i, in the
    original."""

    def __init__(self, text: str) -> None:
        self._source = text
        self._starts: list[int] = []
        self._ends: list[int] = []
        signs: list[str] = []
        place = 0
        while place < len(text):
            if text[place].isascii() and text[place] not in "&%\\":
                signs.append(text[place].lower())
                self._starts.append(place)
                self._ends.append(place + 1)
                place += 1
                continue
            escaped = _ESCAPED.match(text, place)
            raw = _unescaped(escaped[0]) if escaped else text[place]
            end = escaped.end() if escaped else place + 1
            for sign in unicodedata.normalize("NFKD", raw):
                self._add(sign, place, end, signs)
            place = end
        self.text = "".join(signs)

    def _add(self, sign: str, start: int, end: int, signs: list[str]) -> None:
        if unicodedata.combining(sign):  # it changes the character before it
            self._ends[-1:] = [end] * bool(self._ends)
            return
        if is_invisible(sign) or unicodedata.category(sign) == "Mn":
            return
        for folded in sign.translate(_LOOK_ALIKE).casefold().translate(_LOOK_ALIKE):
            signs.append(folded)
            self._starts.append(start)
            self._ends.append(end)

    def original(self, match: re.Match[str]) -> tuple[int, str]:
        """Where a match starts in the source, and what stands there."""
        start, end = self._starts[match.start()], self._ends[match.end() - 1]
        return start, self._source[start:end]


def _unescaped(escape: str) -> str:
    """The character of an escape of HTML, of a URL or of JSON."""
    if not escape.startswith("&"):
        return chr(int(escape[-2:], 16))
    return html.unescape(re.sub(r"(?i)^&(?:amp;)+", "&", escape).rstrip(";").lower() + ";")


def _shown(text: str) -> str:
    """In quotes, with escapes for what cannot be seen, cut where it is long."""
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return f"'{shown[:40]}...'" if len(shown) > 40 else f"'{shown}'"
