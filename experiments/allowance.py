"""Which modules a command line allows names of files to import: `--plugins`, and what it names itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.plugins import allow

FLAG = "--plugins"
# options whose values name parts of one's own; file names are not among them: others choose those
_NAMING = ("--rewards", "--judges", "--features", "--fail-if", "--clip-score", "--set", "--set-reward")
_NAME = re.compile(r"(?<![\w.:/])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?=[A-Za-z]\w*)")
_RECIPE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\.[A-Za-z_]\w*")


def take_plugins(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--plugins MODULE[,MODULE]`, whose modules are allowed from here on.

    Raises ValueError where a module is missing or is no module's name.
    """
    rest, given = [], iter(arguments)
    for argument in given:
        flag, equals, value = argument.partition("=")
        if flag != FLAG:
            rest.append(argument)
            continue
        if not (value if equals else (value := next(given, ""))) or value.startswith("-"):
            raise ValueError(f"{FLAG}: expected a module, as in {FLAG} mine.rewards")
        allow(name.strip() for name in value.split(","))
    return rest


def allow_named(arguments: Sequence[str], with_recipe: bool) -> None:
    """Allow the modules of the parts that a verb's arguments name: the user's own word.

    with_recipe: the first argument is a recipe, which may be package.module.function.
    """
    option = ""
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            option, _, value = argument.partition("=")
        else:
            value = argument
        if option.replace("_", "-") in _NAMING:
            allow(_NAME.findall(value))
        elif (option == "--recipe" or (with_recipe and not position)) and (
            recipe := _RECIPE.fullmatch(value)
        ):
            allow([recipe[1]])
