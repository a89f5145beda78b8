"""Traditional Chinese characters to simplified ones, by OpenCC's dictionaries."""

from __future__ import annotations

from functools import cache
from typing import Any

import regex

_HAN = regex.compile(r"\p{Han}")
# Spelling variants of one spoken word that zhconv's zh-cn makes equal and OpenCC's t2s leaves as they are
_VARIANTS = str.maketrans("著妳牠馀锺", "着你它余钟")


def simplified(text: str) -> str:
    """A text with simplified characters; words of Taiwan and Hong Kong are kept (軟體 to 软体, not 软件).

    著 and 着, 妳 and 你, 牠 and 它 become one character each, whatever the text is written in. Texts without
    Han characters are returned as they are.
    """
    if not _HAN.search(text):
        return text
    return _converter().convert(text).translate(_VARIANTS).replace("甚么", "什么")


@cache
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")
