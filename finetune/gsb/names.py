"""Names in votes, of raters, cases and models: folded before they are compared.

Exports of labelling tools put blanks behind names, and systems write accents in two ways; such names are
equal. Names that differ by case only may be two, so they are counted apart and warned of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pretrain.prompt.characters import broken_character, caseless, folded_name

__all__ = ["alike_warnings", "folded_name", "name_problem"]

SHOWN = 5  # groups of names in a warning


def name_problem(name: Any) -> str:
    """What is wrong with a name, "" if nothing is: no text, or nothing to see in it."""
    if not isinstance(name, str) or not folded_name(name):
        return f"expected a name, got {name!a}"
    return broken_character(name)


def alike_warnings(names: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """A line for each kind of names, as `raters`, among which some differ by case or width only."""
    found = []
    for kind, given in names.items():
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(given):
            groups.setdefault(caseless(name), []).append(name)
        alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
        if alike:
            more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
            found.append(
                f"{kind} that differ by case only are counted apart: {', '.join(alike[:SHOWN])}{more}; give "
                "them one name if they are one"
            )
    return tuple(found)
