"""Find a recipe by name or dotted name and put overrides in; a wrong name is an error that says the nearest
right one."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import experiments.recipes
from pretrain.config import nearest, one_line, override, plain_fields, read_yaml
from rewards import plugins

SUPPORT = {"base", "full_size_alignment", "load"}


def shipped_recipes() -> list[str]:
    """Names of the recipes in this package: module `x` holds the function `x`."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(experiments.recipes.__path__)
        if module.name not in SUPPORT
    )


def load_recipe(name: str, params: Path | None = None, settings: Sequence[str] = ()) -> Any:
    """Recipe with overrides: first the file's (when it is for this recipe), then `key.path=value` settings in
    order.

    Raises ValueError naming the nearest valid recipe or key.
    """
    recipe = recipe_function(name)()
    values = read_params(params) if params else {}
    chosen = values.pop("recipe", name)
    if "." not in str(chosen) and chosen not in shipped_recipes():
        raise ValueError(
            f"{params} recipe: unknown recipe {chosen!r}; {nearest(str(chosen), shipped_recipes())}"
        )
    if chosen == name:
        recipe = override(recipe, _without_empty(values))
    for setting in settings:
        recipe = override(recipe, parse_setting(setting))
    return recipe


def recipe_function(name: str) -> Any:
    """The function behind a shipped recipe's name or a dotted one (`my.package.recipe`).

    Raises ValueError for an unknown one, and for a module that is not allowed (`rewards.plugins`).
    """
    if "." in name:
        module_name, _, attribute = name.rpartition(".")
        here = str(Path.cwd())
        if not {"", here} & set(sys.path):
            sys.path.append(here)  # a console script, unlike `python -m`, does not look where it is started
        return plugins.load(f"{module_name}:{attribute}", plugins.KINDS["recipe"], f"recipe {name!r}")
    if name not in shipped_recipes():
        raise ValueError(f"unknown recipe {name!r}; {nearest(name, shipped_recipes())}")
    return getattr(importlib.import_module(f"experiments.recipes.{name}"), name)


def read_params(path: Path) -> dict[str, Any]:
    """Overrides of a params.yaml; raises ValueError with file and line when it is not a YAML mapping."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run this where params.yaml is or give --params")
    try:
        values = read_yaml(path.read_bytes()) or {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}:{line}: not YAML ({error.problem}); mend that line") from None
    except yaml.YAMLError as error:  # bytes that are no text
        raise ValueError(f"{path}: not YAML ({one_line(error)}); save it as UTF-8 text") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}:1: expected a mapping of sections, got {type(values).__name__}")
    return values


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in values.items() if value is not None
    }  # a section without lines says nothing


def parse_setting(setting: str) -> dict[str, Any]:
    """`a.b=value` as nested mappings; the value is read as YAML, so 3, 1e-3, true and [a, b] are what they
    look like."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {setting}: expected key=value, e.g. pretrain.stages.stage1.steps=100")
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        raise ValueError(f"--set {setting}: the value is not YAML; quote it") from None
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def as_plain(config: Any) -> Any:
    """A config tree as what JSON and MLflow can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {name: as_plain(value) for name, value in plain_fields(config).items()}
    if isinstance(config, Mapping):
        return {str(key): as_plain(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [as_plain(item) for item in config]
    return config if isinstance(config, (str, int, float, bool, type(None))) else str(config)
