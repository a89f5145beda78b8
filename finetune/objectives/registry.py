"""Look up objectives by the entries of a recipe's sequence: a shipped name or "package.module:Objective"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetune.objectives.base import Objective, Phase
from pretrain.config import nearest
from pretrain.tracking import imported

SHIPPED = {
    "rwr": "finetune.objectives.rwr:Rwr",
    "gsb_dpo": "finetune.objectives.gsb_dpo:GsbDpo",
    "nft": "finetune.objectives.nft:Nft",
    "awm": "finetune.objectives.awm:Awm",
    "grpo": "finetune.objectives.grpo:Grpo",
}


def objective_type(entry: str) -> type[Objective[Any]]:
    """Class of an entry. Raises ValueError for an unknown one, with the nearest shipped name."""
    if ":" not in entry and entry not in SHIPPED:
        raise ValueError(f"sequence: unknown algorithm {entry!r}; {nearest(entry, SHIPPED)}")
    found = imported(SHIPPED.get(entry, entry), "sequence")
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(
            f"sequence: {entry!r} is no objective; derive a class from finetune.objectives.base.Objective"
        )
    return found


def default_phases(sequence: Iterable[str] = ()) -> dict[str, Phase]:
    """Sections of all shipped objectives and of those in `sequence`, by name.

    Unknown plain names are left out. Raises ValueError if an entry cannot be loaded or two objectives have
    one name.
    """
    types = {name: objective_type(name) for name in SHIPPED}
    for entry in sequence:
        if isinstance(entry, str) and ":" in entry:
            found = objective_type(entry)
            if types.setdefault(found.name, found) is not found:
                raise ValueError(
                    f"sequence: {entry!r} is called {found.name!r} as another objective is; rename it"
                )
    return {name: each.phase_type() for name, each in types.items()}


def sections(values: Mapping[str, Any]) -> dict[str, Phase]:
    """`default_phases` of an align section that is being read."""
    sequence = values.get("sequence", ())
    return default_phases(sequence if isinstance(sequence, (list, tuple)) else ())
