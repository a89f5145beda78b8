"""What a run that went on after a kill has changed: its commit, inputs and parents, as tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

CHANGED = "nava.changed."  # tag: what a resumed run had before, and has now
COMMITS = f"{CHANGED}git.commit"
SOURCE = "mlflow.source."
NONE = "none"
_ARROW = " -> "
INPUT, PARENT_KEY, PARENT_ID = "input.", "parent_key.", "parent."


class Changes(NamedTuple):
    """said: tags that name what has changed; gone: tags of what a run does not read any more."""

    said: dict[str, str]
    gone: list[str]


def changed_tags(stored: Mapping[str, str], tags: Mapping[str, str]) -> Changes:
    """What changes when a run with the stored tags goes on with a start's `tags`.

    A value that changes more than once is named with all its values; a call that is made again, after the
    tags that it said had arrived, says the same.
    """
    gone = [name for name in stored if name.startswith((INPUT, PARENT_KEY)) and name not in tags]
    ids = [PARENT_ID + name.removeprefix(PARENT_KEY) for name in gone if name.startswith(PARENT_KEY)]
    said: dict[str, str] = {}
    for name, after in {**tags, **dict.fromkeys(gone, NONE)}.items():
        before = stored.get(name, NONE if name.startswith(INPUT) else after)
        if before == after or name.startswith(PARENT_ID):  # the id of a key that is named
            continue
        tag = CHANGED + name.removeprefix(SOURCE)
        said[tag] = _one_more(stored.get(tag, ""), before, after)
    return Changes(said, gone + [name for name in ids if name in stored])


def _one_more(said: str, before: str, after: str) -> str:
    if said.endswith(_ARROW + after):
        return said
    return (said if said.endswith(_ARROW + before) else before) + _ARROW + after


def values_of(said: str) -> list[str]:
    """All values of a tag that says what changed, oldest first; none of an empty one."""
    return said.split(_ARROW) if said else []


def others_before(values: Sequence[str]) -> list[str]:
    """Those that are not the last one, each once, without empty ones."""
    return [value for value in dict.fromkeys(values) if value and value != values[-1]]
