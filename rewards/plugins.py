"""Which modules a name of a file may have imported, and what such a name must be before it is called.

A rubric, a params.yaml or a resolved run may come from somebody else. A name "package.module:Class" in one is
imported only where its user has allowed that module: on the command line (`--plugins mine.rewards`, or the
name itself, as in `--rewards mine.rewards:Sharp`) or in the environment (NAVA_PLUGINS, with commas), which
the processes of a command inherit. Of our own packages only parts of the wanted kind can be named.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from rewards.options import nearest, one_line

VARIABLE = "NAVA_PLUGINS"
OURS = ("pretrain", "finetune", "rewards", "orchestration", "experiments")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ATTRIBUTE = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True)
class PluginKind:
    """What a name has to lead to: a class with these methods, or (`factory`) a function that makes one."""

    what: str  # as errors say it
    methods: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()  # our packages that hold parts of this kind
    factory: bool = False


REWARD = PluginKind(
    "a reward: it has no `name` and `score(clips)`; see rewards.base.Reward", ("score",), ("rewards",)
)
KINDS = {
    "reward": REWARD,
    "trackers": PluginKind(
        "a tracker: a class with log_metrics, log_artifact and set_tags, or a function that makes one",
        ("log_metrics", "log_artifact", "set_tags"),
        ("experiments.runs", "experiments.studies"),
        factory=True,
    ),
    "scorer": PluginKind(
        "a scorer: a class with `score`, or a function that makes one",
        ("score",),
        ("experiments.scoring",),
        factory=True,
    ),
    "sequence": PluginKind("a class of an objective", (), ("finetune.objectives",)),
    "--clip-score": PluginKind(
        "a class or function that makes what scores clips", (), ("experiments",), factory=True
    ),
    "prepare": PluginKind(
        "a step of `nava prepare`: a function or class of its own kind (docs/preparing.md)",
        (),
        tuple(
            f"experiments.preparation.{name}"
            for name in (
                "scenes",
                "activity",
                "words",
                "picture",
                "overlays",
                "sound",
                "speech",
                "faces",
                "captions",
            )
        ),
        factory=True,
    ),
    "embedding": PluginKind(
        "a model that places clips: a class with embed(media), or a function that makes one",
        ("embed",),
        tuple(f"experiments.preparation.{name}" for name in ("embeddings",)),
        factory=True,
    ),
    "recipe": PluginKind("a function that returns a recipe", (), ("experiments.recipes",), factory=True),
}


def allowed() -> tuple[str, ...]:
    """The modules that the user allows, in order. Raises ValueError for what is no module's name."""
    found = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in found:
        if not _MODULE.fullmatch(name):
            raise ValueError(f"{VARIABLE}: {name!r} is no module; give package.module, several with commas")
    return tuple(dict.fromkeys(found))


def allow(modules: Iterable[str]) -> None:
    """Allow modules, and all below them, to this process and those that it starts. Raises ValueError."""
    wanted = list(modules)
    for name in wanted:
        if not _MODULE.fullmatch(name):
            raise ValueError(f"--plugins {name!r}: is no module; give package.module, several with commas")
    if wanted:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*allowed(), *wanted]))


def inherited() -> dict[str, str]:
    """The allowance as environment variables of a process on another machine; {} without one."""
    return {VARIABLE: ",".join(allowed())} if allowed() else {}


def is_allowed(module: str, kind: PluginKind) -> bool:
    return any(_within(module, name) for name in (*allowed(), *kind.ours))


def load(name: str, kind: PluginKind, where: str) -> Any:
    """The class or function that "package.module:attribute" names, checked and not yet called.

    where: what errors begin with. Raises ValueError in one line for a module that is not allowed (and is then
    not imported), that cannot be imported, or whose attribute is not of this kind.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not _MODULE.fullmatch(module_name) or not _ATTRIBUTE.fullmatch(attribute):
        raise ValueError(f"{where}: cannot be imported (no such name); give package.module:Class")
    check_allowed(module_name, kind, where)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of one's own may raise anything
        raise ValueError(
            f"{where}: cannot be imported ({one_line(error, 300)}); give package.module:Class with the "
            "package on PYTHONPATH"
        ) from None
    # not getattr: a module's __getattr__ is code
    found = vars(module).get(attribute)
    ours = found is None and any(_within(module_name, name) for name in kind.ours)
    if ours and (made := getattr(module, attribute, None)) is not None:
        return made  # a module of ours may make parts by name, as rewards.remote does
    if found is None:
        public = [other for other, value in vars(module).items() if other[0] != "_" and callable(value)]
        raise ValueError(f"{where}: {module_name} has no {attribute!r}; {nearest(attribute, public)}")
    if not is_part(found, kind) or not _belongs(found, module_name, kind):
        raise ValueError(f"{where}: is not {kind.what}")
    return found


def check_allowed(module: str, kind: PluginKind, where: str) -> None:
    """Raises ValueError where neither the user allows the module nor it is one of ours for this kind."""
    if is_allowed(module, kind):
        return
    if module.partition(".")[0] in OURS:
        holds = f"; those of ours are in {', '.join(kind.ours)}" if kind.ours else ""
        raise ValueError(f"{where}: {module} holds no such part{holds}")
    raise ValueError(
        f"{where}: module {module} is not allowed, and was not imported; if you trust it, add "
        f"--plugins {module} to the command (or set {VARIABLE}={module})"
    )


def is_part(found: Any, kind: PluginKind) -> bool:
    """Whether it has what the kind asks for."""
    if isinstance(found, type):
        return all(callable(inspect.getattr_static(found, name, None)) for name in kind.methods)
    return kind.factory and isinstance(found, FunctionType)


def _belongs(found: Any, module: str, kind: PluginKind) -> bool:
    """A part is defined where names of its kind are looked up; a module of the user's may hand on classes."""
    if isinstance(found, type) and kind.methods and any(_within(module, name) for name in allowed()):
        return True
    return is_allowed(str(getattr(found, "__module__", "")), kind)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")
