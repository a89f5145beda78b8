"""Text normalisation and WER aggregation of each benchmark; pure functions of text."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# The marks of zhon.hanzi.punctuation: full and half width forms, CJK marks and brackets, dashes, quotes,
# stops.
CHINESE_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·！？｡。"
)
_SEED_TTS_DELETED = str.maketrans("", "", (CHINESE_PUNCTUATION + string.punctuation).replace("'", ""))


@dataclass(frozen=True)
class WerConvention:
    """How one benchmark turns two texts into a word error rate.

    `words` turns a text into words between blanks, `mean_of_clips` takes the mean of the clips' rates instead
    of total errors over total words, `percent` scales the published figure by 100, `recogniser` names the
    benchmark's recogniser.
    """

    name: str
    words: Callable[[str], str]
    mean_of_clips: bool = False
    percent: bool = False
    recogniser: str = ""


def normalize(text: str) -> str:
    """Lower case, punctuation (but for apostrophes) dropped, single blanks."""
    return " ".join(re.sub(r"[^\w\s']|_", " ", text.lower()).split())


def seed_tts_en(text: str) -> str:
    """Seed-TTS eval, English: punctuation except apostrophes deleted, double blanks halved once, lower case.

    "well-known" becomes "wellknown".
    """
    return text.translate(_SEED_TTS_DELETED).replace("  ", " ").lower()


def seed_tts_zh(text: str) -> str:
    """Seed-TTS eval, Chinese: as `seed_tts_en` with case kept, one word per character.

    A character error rate that is published as WER.
    """
    return " ".join(text.translate(_SEED_TTS_DELETED).replace("  ", " "))


def verse_bench(text: str) -> str:
    """Ends stripped and lower case, nothing else; a text of nothing but punctuation is empty."""
    text = text.strip().lower()
    return (
        ""
        if all(character.isspace() or unicodedata.category(character)[0] == "P" for character in text)
        else text
    )


def normalised(text: str) -> str:
    """Whisper's normalisation for any language: case, marks and brackets dropped, symbols to blanks."""
    return _basic_normalizer()(text).strip()


def normalised_english(path: Path) -> WerConvention:
    """Whisper's English normalisation, with the model's own normalizer.json.

    Raises FileNotFoundError or ValueError in one line when the file is missing or is not a map of spellings.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; take normalizer.json from the Whisper model's folder")
    try:
        spellings = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not JSON ({error}); take normalizer.json from the Whisper model's folder"
        ) from None
    if not isinstance(spellings, dict) or not all(isinstance(value, str) for value in spellings.values()):
        raise ValueError(
            f"{path}: not a map of spellings; take normalizer.json from the Whisper model's folder"
        )
    normalizer = EnglishTextNormalizer(spellings)
    return WerConvention("normalised_english", lambda text: normalizer(text).strip())


DEFAULT = WerConvention("", normalize)
SEED_TTS_EN = WerConvention(
    "seed_tts_en", seed_tts_en, mean_of_clips=True, percent=True, recogniser="whisper_large_v3"
)
SEED_TTS_ZH = WerConvention(
    "seed_tts_zh", seed_tts_zh, mean_of_clips=True, percent=True, recogniser="paraformer_zh"
)
VERSE_BENCH = WerConvention("verse_bench", verse_bench, mean_of_clips=True, recogniser="sensevoice_small")
NORMALISED = WerConvention("normalised", normalised)
SCORINGS = {scoring.name: scoring for scoring in (DEFAULT, SEED_TTS_EN, SEED_TTS_ZH, VERSE_BENCH, NORMALISED)}


@cache
def _basic_normalizer() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()
