"""Memory of a GPU that a model shares with other networks: those of a codec, and of rewards.

A network is on the GPU from its first use on, or parked: in the host's memory while it does not work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.model.plan_memory import allowance


@dataclass(frozen=True)
class Beside:
    """A network beside the model, in bytes."""

    part: str  # of the plan that its weights are counted under
    weights: float
    peak: float  # beside its weights, while it works
    parked: bool = False


PartsByMoment = dict[str, dict[str, float]]  # what is done -> bytes by part meanwhile


def moments_beside(
    steps: Mapping[str, Mapping[str, float]], waiting: Mapping[str, float], networks: Mapping[str, Beside]
) -> PartsByMoment:
    """Memory in the steps of a model and while each of `networks` works, by part; they work one at a time.

    steps: parts of the model's memory in each of its steps, as of `memory_parts`; waiting: what it holds
    while it does nothing.
    """
    there = [name for name, network in networks.items() if not network.parked]
    found = {name: {**parts, **_weights(networks, there)} for name, parts in steps.items()}
    for name, network in networks.items():
        at_work = _weights(networks, dict.fromkeys([*there, name]))
        passing = {"network_at_work": network.peak}
        found[name] = {**waiting, **at_work, **passing, "allowance": allowance({**waiting, **passing})}
    return found


def most(moments: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Parts of the moment at which most is held."""
    return dict(max(moments.values(), key=lambda parts: sum(parts.values())))


def _weights(networks: Mapping[str, Beside], there: Mapping[str, None] | list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in there:
        part = networks[name].part
        found[part] = found.get(part, 0.0) + networks[name].weights
    return found
