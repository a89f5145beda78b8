"""What a training depends on, in one form for all that ask whether something changed.

DVC's stages, resuming, "unchanged" and a recipe's hash compare identities by `difference`. The fields that
change no number are declared here, and nowhere else; tests hold the list against the recipes' dataclasses.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self

from pretrain.config import INLINE

# Options of a reward that change no score: those that its recipe in `rewards` marks as SPEED_ONLY
SPEED_OPTIONS = (
    "device",
    "parked",
    "batch_size",
    "num_processes",
    "concurrency",
    "num_tries",
    "patience_s",
    "timeout_s",
    "token_file",
    "token_variable",
)

# Section of a recipe -> patterns of its fields that change no number of the result: what is logged, measured
# and kept, how far reading runs ahead, how work is cut over ranks and memory (which changes the order of sums
# and so their rounding, as the number of ranks does), and limits that only end a run.
NEUTRAL: Mapping[str, tuple[str, ...]] = {
    "pretrain": (
        "checkpoint.*",
        "log_every",
        "validate_every",
        "validation_samples",
        "latents",  # a place: the digests of its sets count
        "prefetch",
        "cache_gb",
        "local_batch_size",
        "parallel.*",
        "monitor.*",
        "deterministic",  # which kernels sum, and so their rounding
        "policy.max_skips_in_a_row",
    ),
    "finetune": (
        "checkpoint.*",
        "log_every",
        "validate_every",
        "validation_samples",
        "validation",  # a place, as `latents`; nothing is trained on it
        "base",  # likewise: the digests of its sets count
        "prompts",
        "clips_every",
        "clips",
        "prefetch",
        "cache_gb",
        "local_batch_size",
        "parallel.*",
        "monitor.*",
        "deterministic",
        "policy.max_skips_in_a_row",
        "sound.*",
    ),
    "align": (
        "checkpoint_every",
        "keep_last",
        "samples",
        "parallel.*",
        "max_flat_rounds",
        "max_skips",
        "rubric.allow_prompt_blind",
        "*.micro_batch",
        "*.rollout_batch",
        *(f"{place}.*.{name}" for place in ("reward_options", "scorer.options") for name in SPEED_OPTIONS),
    ),
}
COUNTING = ("settings", "inputs", "parents")
_DIGEST = re.compile(r"\b[0-9a-f]{16,}\b(\.dir)?")


class Difference(NamedTuple):
    """A field that differs; None where one side has no such field."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field} {_short(self.before)} -> {_short(self.after)}"

    def asked(self) -> str:
        """Of a training that is there and one that is asked for."""
        return f"{self.field} {_short(self.before)}, asked for {_short(self.after)}"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a result depends on, by dotted names: `settings`, `inputs` and `parents` decide its numbers.

    A difference in `code` is a warning, one in `neutral` is only named. An empty `code` is unknown.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # digests of what is read
    parents: Mapping[str, str] = field(default_factory=dict)  # ids of the models it starts from
    code: Mapping[str, str] = field(default_factory=dict)  # digests of the files and folders that run
    neutral: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, dict[str, Any]]:
        return {item.name: dict(getattr(self, item.name)) for item in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """Parts that are unknown to this version are ignored."""
        return cls(**{item.name: values.get(item.name, {}) for item in dataclasses.fields(cls)})


def difference(before: Identity, after: Identity, parts: Sequence[str] = COUNTING) -> list[Difference]:
    """(field, before, after) of every field of `parts` that differs, sorted by part and name."""
    found: list[Difference] = []
    neutral = {*before.neutral, *after.neutral}
    for part in parts:
        # a field that a later version knows to be neutral was among the settings of an earlier one
        moved = neutral if part == "settings" else set()
        old, new = getattr(before, part), getattr(after, part)
        if part == "code" and not (old and new):
            continue
        prefix = "" if part in ("settings", "neutral") else f"{part}."
        found += [
            Difference(f"{prefix}{name}", old.get(name), new.get(name))
            for name in sorted({*old, *new} - moved)
            if old.get(name) != new.get(name)
        ]
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names; an empty one stays a value."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def is_neutral(name: str, section: str) -> bool:
    """Whether a field of a recipe's section changes no number."""
    return any(fnmatchcase(name, pattern) for pattern in NEUTRAL.get(section, ()))


def split(settings: Mapping[str, Any], section: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields that count, neutral ones) of flat settings of a recipe's section."""
    neutral = {name: value for name, value in settings.items() if is_neutral(name, section)}
    return {name: value for name, value in settings.items() if name not in neutral}, neutral


def field_defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Defaults of the scalar fields of a dataclass tree by dotted name, as its classes have them."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        default = item.default if item.default is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(value):
            found |= field_defaults(value, f"{name}.")
        elif isinstance(value, Mapping):
            within = prefix if INLINE in item.metadata else f"{name}."
            for key, member in value.items():
                found |= field_defaults(member, f"{within}{key}.") if dataclasses.is_dataclass(member) else {}
        elif isinstance(default, (str, int, float, bool)):
            found[name] = default
    return found


def _short(value: Any) -> str:
    """Digests by their beginning."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, str):
        return _DIGEST.sub(lambda found: found[0][:8], value)
    return repr(value)
