"""`nava plugins`: which modules names of files may import, and what is in them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.commands.options import JsonFlag
from rewards import plugins

_NAMED = re.compile(r"(?<![\w.:/])((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*):([A-Z]\w*)")


def list_plugins(
    files: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FILE", help="rubrics, params.yaml and the like, whose names are looked up"),
    ] = (),
    /,
    as_json: JsonFlag = False,
) -> int:
    """What `--plugins MODULE` and NAVA_PLUGINS allow, where it lies and the parts in it; the shipped parts.

    With files: every package.module:Class that they name, and whether it is allowed. Nothing that is not
    allowed is imported. The exit code is 1 where a file names what would be refused.
    """
    named = [row for file in files for row in _named(file)]
    found = {
        "allowed": [_module(name) for name in plugins.allowed()],
        "shipped": _shipped(),
        "named": named,
    }
    print(json.dumps(found, indent=1) if as_json else _text(found))
    return int(any(row["problem"] for row in named))


def _module(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return {"module": name, "file": "", "problem": str(error), "parts": {}}
    own = {
        key: value
        for key, value in vars(module).items()
        if key[0] != "_" and callable(value) and getattr(value, "__module__", "") == module.__name__
    }
    kinds = {
        key: [kind for kind in ("reward", "trackers", "scorer") if _fits(value, kind)]
        for key, value in own.items()
    }
    return {"module": name, "file": getattr(module, "__file__", None) or "", "problem": "", "parts": kinds}


def _fits(value: Any, kind: str) -> bool:
    return isinstance(value, type) and plugins.is_part(value, plugins.KINDS[kind])


def _shipped() -> dict[str, list[str]]:
    from experiments.recipes.load import shipped_recipes
    from finetune.objectives.registry import SHIPPED
    from rewards.catalog import CATALOG

    return {
        "rewards": list(CATALOG),
        "objectives": list(SHIPPED),
        "recipes": shipped_recipes(),
        "codecs": ["linear", "published"],
    }


def _named(file: Path) -> list[dict[str, str]]:
    """The names in a file, each with what speaks against it, "" if nothing does."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    rows = []
    for module, attribute in dict.fromkeys(_NAMED.findall(text)):
        name, problem = f"{module}:{attribute}", ""
        if not any(plugins.is_allowed(module, kind) for kind in plugins.KINDS.values()):
            problem = "not allowed"
        elif importlib.util.find_spec(module) is None:
            problem = "no such module"
        rows.append({"file": str(file), "name": name, "problem": problem})
    return rows


def _text(found: dict[str, Any]) -> str:
    lines = []
    for row in found["allowed"]:
        parts = ", ".join(
            f"{name} ({', '.join(kinds)})" if kinds else name for name, kinds in row["parts"].items()
        )
        lines.append(
            f"allowed  {row['module']}: {row['problem'] or row['file']}" + (f": {parts}" if parts else "")
        )
    if not lines:
        lines.append(f"allowed  none of your own; --plugins MODULE or {plugins.VARIABLE}=MODULE allows one")
    lines += [f"shipped  {kind}: {', '.join(names)}" for kind, names in found["shipped"].items()]
    lines += [
        f"named    {row['file']}: {row['name']}: {row['problem'] or 'allowed'}" for row in found["named"]
    ]
    return "\n".join(lines)
