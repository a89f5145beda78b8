"""`models:/` URIs of MLflow's registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SCHEME = "models:/"
LATEST = "latest"
FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest, or models:/ID of a logged model"
# no separators, no quotes or wildcards of MLflow's search, nothing that a URI reads as its own
_NAME = re.compile(r"[^/\\:@?#%'\"`*\x00-\x1f\x7f]+")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_VERSION = re.compile(r"[0-9]{1,9}")
_ID = re.compile(r"m-[0-9a-f]{32}")
MAX_NAME = 250


@dataclass(frozen=True)
class ModelUri:
    """What a URI names: a logged model by `model_id`, or a registered one by version, alias or as latest."""

    text: str
    name: str = ""
    version: int = 0
    alias: str = ""
    latest: bool = False
    model_id: str = ""

    @property
    def changes(self) -> bool:
        """True if it may name another model tomorrow."""
        return bool(self.alias) or self.latest


def is_registered(text: str | Path) -> bool:
    """True for a model that is named by its place in MLflow's registry."""
    return str(text).startswith(SCHEME)


def parse_model_uri(text: str) -> ModelUri:
    """Raises ValueError in one line for anything but one of FORMS; names and aliases hold no path."""
    name, slash, version = text.removeprefix(SCHEME).partition("/")
    if text.startswith(SCHEME) and not slash:
        if _ID.fullmatch(name):
            return ModelUri(text, model_id=name)
        name, at, alias = name.partition("@")
        if at and _is_name(name) and _ALIAS.fullmatch(alias):
            return ModelUri(text, name, alias=alias)
    elif text.startswith(SCHEME) and _is_name(name):
        if _VERSION.fullmatch(version) and int(version):
            return ModelUri(text, name, version=int(version))
        if version.lower() == LATEST:
            return ModelUri(text, name, latest=True)
    shown = text if text.isprintable() else repr(text)
    raise ValueError(f"{shown}: expected {FORMS}")


def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name.strip(". ") != "" and len(name.encode()) <= MAX_NAME
