"""Warnings about words of prompts that the model which is to say or show them has never seen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.files import read_json
from pretrain.prompt import readable_prompts

SHOWN = 20  # rows that are warned of one by one


def word_warnings(prompts: Path, codec: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """`{line, field, message}` of rows with words that the mini was never trained on, among the first `limit`
    rows; rows with errors are left out.

    The mini's text encoder (of `linear` codecs, and where there is no codec yet) takes any word, and gives
    one that no training text had a vector that means nothing to the model. Published encoders know all words.
    """
    config = codec / "config.json"
    if config.is_file() and read_json(config, "run `nava codec` again").get("kind") != "linear":
        return []
    from pretrain.data.corpus.vocabulary import vocabulary_warning

    found = []
    for row in readable_prompts(prompts)[:limit]:
        if message := vocabulary_warning(row.prompt):
            found.append({"line": row.line, "field": "prompt", "message": message})
    return found


def print_warnings(prompts: Path, warnings: Sequence[dict[str, Any]]) -> None:
    """One line a row on stderr, and how many more there are."""
    for warning in warnings[:SHOWN]:
        where = f"{prompts}:{warning['line']} {warning['field']}"
        print(f"warning: {where}: {warning['message']}", file=sys.stderr)
    if (more := len(warnings) - SHOWN) > 0:
        print(f"warning: {prompts}: {more} more rows are warned of", file=sys.stderr)
