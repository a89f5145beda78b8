"""The words of the pages, a JSON file for each language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.files import read_json

FOLDER = Path(__file__).parent / "texts"
BASE = "en"
NAME = "language"  # what the language calls itself


@dataclass(frozen=True)
class Texts:
    """Language code -> key -> text, each with all keys; a missing one is English."""

    by_code: dict[str, dict[str, str]]

    def names(self) -> dict[str, str]:
        return {code: texts[NAME] for code, texts in self.by_code.items()}


def read_texts(extra: Path | None = None) -> Texts:
    """The languages of this package and those of the JSON files (CODE.json) of a folder.

    Raises ValueError naming file and key for one that English does not have or a value that is no text.
    """
    if extra is not None and not extra.is_dir():
        raise FileNotFoundError(f"--texts {extra}: no such folder; put CODE.json files there")
    base = _read(FOLDER / f"{BASE}.json", None)
    found = {BASE: base}
    for folder in (FOLDER, *([extra] if extra else [])):
        for path in sorted(folder.glob("*.json")):
            found[path.stem] = {**base, **_read(path, base)}
    return Texts(found)


def _read(path: Path, base: dict[str, str] | None) -> dict[str, str]:
    values = read_json(path, "copy en.json and translate its values")
    for key, value in values.items():
        if base is not None and key not in base:
            raise ValueError(f"{path}: {key}: unknown; the keys are those of en.json")
        if not isinstance(value, str):
            raise ValueError(f"{path}: {key}: expected text, got {value!r}")
    if NAME not in values:
        raise ValueError(f"{path}: {NAME}: missing; the language's own name")
    return values
