"""Text normalisation and WER aggregation of each benchmark; pure functions of text.

Which scoring for which language is in docs/rewards.md.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rewards.speech.chinese import simplified
from rewards.speech.folding import fold, split_words
from rewards.speech.scripts import named, scripts, without_blanks
from rewards.speech.typography import damage, typography

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
    benchmark's recogniser. `script` is the one that its texts have, beside Latin letters ("" = any);
    `between_blanks`: it counts what stands between blanks, so that a text without blanks would be one word.
    """

    name: str
    words: Callable[[str], str]
    mean_of_clips: bool = False
    percent: bool = False
    recogniser: str = ""
    script: str = ""
    between_blanks: bool = False

    def split(self, text: str) -> list[str]:
        """The words, cut as jiwer does: a single no-break blank or tab does not separate."""
        return [word for word in re.sub(r"\s\s+", " ", self.words(text)).strip().split(" ") if word]

    def refusal(self, text: str) -> str:
        """Why the errors in a reference text cannot be counted fairly; "" if they can."""
        if reason := damage(text):
            return reason
        if not self.split(text):
            return "the prompt has no speech text"
        others = named(text, but=(self.script, "Latin"))
        if self.script and (others or self.script not in scripts(text) | {"Latin"}):
            return (
                f"scoring {self.name} counts {self.script} texts, and this one is in "
                f"{named(text) or 'no letters'}; leave scoring at its default"
            )
        if self.between_blanks and without_blanks(text):
            return (
                f"scoring {self.name} counts words between blanks, and {named(text)} has none; leave scoring "
                "at its default"
            )
        return ""


def normalize(text: str) -> str:
    """Words of the default scoring, single blanks between them: `folding.split_words` of the folded text.

    "It’s 1,000 – well-known…" becomes "it's 1000 well known", 我用iPhone becomes "我 用 iphone".
    """
    return " ".join(split_words(fold(text)))


def seed_tts_en(text: str) -> str:
    """Seed-TTS eval, English: punctuation except apostrophes deleted, double blanks halved once, lower case.

    "well-known" becomes "wellknown", and so does "don’t" "dont": nothing is folded, as in the published
    script.
    """
    return text.translate(_SEED_TTS_DELETED).replace("  ", " ").lower()


def seed_tts_zh(text: str) -> str:
    """Seed-TTS eval, Chinese: simplified, punctuation deleted, one word per character, case kept.

    A character error rate that is published as WER. The published script simplifies the transcript by zhconv;
    here both texts are, by OpenCC (`chinese.simplified` names the differences).
    """
    return " ".join(simplified(text).translate(_SEED_TTS_DELETED).replace("  ", " "))


def verse_bench(text: str) -> str:
    """Ends stripped and lower case, nothing else; a text of nothing but punctuation is empty."""
    text = text.strip().lower()
    return (
        ""
        if all(character.isspace() or unicodedata.category(character)[0] == "P" for character in text)
        else text
    )


def normalised(text: str) -> str:
    """Whisper's normalisation for any language, with two faults of it mended.

    As Whisper's: text in brackets and apostrophes are dropped too ("don't" is two words). Other than it:
    `fold` goes first, combining marks stay, and scripts without blanks are counted by characters; its own
    makes a blank of each Indic or Thai vowel sign.
    """
    text = re.sub(r"\(([^)]+?)\)", "", re.sub(r"[<\[][^>\]]*[>\]]", "", text))
    return " ".join(split_words(fold(text).replace("'", " ")))


def normalised_english(path: Path) -> WerConvention:
    """Whisper's English normalisation, with the model's own normalizer.json, after `typography`.

    Numbers, contractions and British spellings are made equal: 1,000, 1000 and one thousand are.

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
    return WerConvention(
        "normalised_english", lambda text: normalizer(typography(text)).strip(), script="Latin"
    )


DEFAULT = WerConvention("", normalize)
SEED_TTS_EN = WerConvention(
    "seed_tts_en",
    seed_tts_en,
    mean_of_clips=True,
    percent=True,
    recogniser="whisper_large_v3",
    script="Latin",
)
SEED_TTS_ZH = WerConvention(
    "seed_tts_zh", seed_tts_zh, mean_of_clips=True, percent=True, recogniser="paraformer_zh", script="Han"
)
VERSE_BENCH = WerConvention(
    "verse_bench", verse_bench, mean_of_clips=True, recogniser="sensevoice_small", between_blanks=True
)
NORMALISED = WerConvention("normalised", normalised)
SCORINGS = {scoring.name: scoring for scoring in (DEFAULT, SEED_TTS_EN, SEED_TTS_ZH, VERSE_BENCH, NORMALISED)}
