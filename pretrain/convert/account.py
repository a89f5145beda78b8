"""Every key of both sides accounted for: used, copied, fresh or ignored. What does not fit is refused before
a tensor is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from pretrain.convert.layouts import Rule, ignored_reason
from pretrain.model.args import ModelArgs
from pretrain.model.checkpoint import check_keys
from pretrain.model.flavors import build_model
from pretrain.model.initial import First, first_values


@dataclass(frozen=True)
class Sizes:
    """What the model asks for: shapes of its tensors and how each starts where nothing is given."""

    shapes: Mapping[str, torch.Size]
    first: Mapping[str, First]


@dataclass(frozen=True)
class Account:
    """Which key becomes which; `ignored` maps keys of the checkpoint that are not needed to the reason."""

    rules: tuple[Rule, ...]
    sizes: Sizes
    ignored: Mapping[str, str]

    def rows(self) -> list[dict[str, object]]:
        """A row per key of ours and per ignored key of theirs, in plain types."""
        told = []
        for rule in self.rules:
            state = "copied" if rule.copied else "used" if rule.theirs else "fresh"
            how = "" if rule.theirs else self.sizes.first[rule.ours].how
            shape = list(self.sizes.shapes[rule.ours])
            told.append(
                {"key": rule.ours, "shape": shape, "state": state, "from": list(rule.theirs), "how": how}
            )
        return told + [
            {"key": key, "shape": [], "state": "ignored", "from": [], "how": why}
            for key, why in self.ignored.items()
        ]

    def counts(self) -> dict[str, int]:
        """Tensors by state, and parameters that come from the checkpoint and that start fresh."""
        states = [row["state"] for row in self.rows()]
        fresh = sum(self.sizes.shapes[rule.ours].numel() for rule in self.rules if not rule.theirs)
        total = sum(shape.numel() for shape in self.sizes.shapes.values())
        named = {state: states.count(state) for state in ("used", "copied", "fresh", "ignored")}
        return {**named, "parameters": total, "parameters_given": total - fresh, "parameters_fresh": fresh}


def sizes_of(args: ModelArgs) -> Sizes:
    """From the model on the meta device."""
    with torch.device("meta"):
        model = build_model(args)
    first = {item.name: item for item in first_values(model, model.args.width)}
    return Sizes({key: value.shape for key, value in model.state_dict().items()}, first)


def their_shapes(some: Collection[Rule], sizes: Sizes) -> dict[str, torch.Size]:
    """The shapes that their keys must have."""
    expected: dict[str, torch.Size] = {}
    for rule in some:
        shape = sizes.shapes[rule.ours]
        expected |= {key: torch.Size((shape[0] // len(rule.theirs), *shape[1:])) for key in rule.theirs}
    return expected


def account(some: Collection[Rule], sizes: Sizes, found: Mapping[str, torch.Size], where: str) -> Account:
    """Raises ValueError that names missing, extra and misshapen keys of the checkpoint in one line."""
    expected = their_shapes(some, sizes)
    ignored = {key: why for key in found if key not in expected and (why := ignored_reason(key))}
    check_keys(expected, {key: shape for key, shape in found.items() if key not in ignored}, where)
    return Account(tuple(some), sizes, ignored)
