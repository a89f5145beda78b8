"""Conditions on the means of a scored set, for continuous integration: `wer_pocketsphinx>0.2`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards.catalog import is_plugin, metrics_of, plugin_class
from rewards.options import nearest
from rewards.rubric import Rubric
from rewards.types import split_part

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*([^\s<>=]+)\s*(<=|>=|<|>)\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")
TOTAL = "total"
Outcome = Literal["passed", "FAILED"]


@dataclass(frozen=True)
class Condition:
    """The mean of a reward (as asked for) or its part, compared with a number."""

    reward: str
    part: str
    comparison: str
    limit: float

    def row(self, called: Mapping[str, str]) -> str:
        """The row of the summary; `called`: reward as asked for -> name of its scores."""
        return ".".join(filter(None, (called.get(self.reward, self.reward), self.part)))


@dataclass(frozen=True)
class Checked:
    """A condition with what was measured; a mean that is not there is FAILED."""

    condition: str
    status: Outcome
    mean: float | None
    low: float | None
    high: float | None
    n: int
    eligible: int

    def line(self) -> str:
        found = "not measured"
        if self.mean is not None:
            between = "" if self.low is None else f" ({self.low:.4g} .. {self.high:.4g})"
            found = f"{self.mean:.4g}{between}"
        return f"{self.status}  {self.condition}: {found}, {self.n} of {self.eligible} clips"


def fail_conditions(texts: Sequence[str], rewards: Collection[str], rubric: Rubric | None) -> list[Condition]:
    """Conditions of --fail-if. `rewards`: those that are scored, as asked for.

    Raises ValueError for what is not `METRIC<NUMBER` (or <=, >, >=) and a metric that is not scored.
    """
    known = _known(rewards) | ({TOTAL: (TOTAL, "")} if rubric else {})
    return [_condition(text, known) for text in texts]


def check_share(share: float | None) -> None:
    """Raises ValueError for a --min-scored that is no share."""
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"--min-scored: expected a share from 0 to 1, got {share:g}")


def checked(
    conditions: Sequence[Condition],
    min_scored: float | None,
    summary: Mapping[str, Any],
    scores: Sequence[str],
    called: Mapping[str, str],
) -> list[Checked]:
    """Every condition of --fail-if on the means of the summary, then the share of clips that each of `scores`
    has. `called`: reward as asked for -> name of its scores."""
    rows = summary["rewards"]
    found = [_checked(condition, condition.row(called), rows) for condition in conditions]
    return found + [_share(name, min_scored, rows[name]) for name in scores if min_scored is not None]


def _condition(text: str, known: Mapping[str, tuple[str, str]]) -> Condition:
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ValueError(
            f"--fail-if {text!r}: expected METRIC, one of {' '.join(OPERATORS)}, and a number, e.g. "
            "'wer_pocketsphinx>0.2'"
        )
    asked, comparison, limit = match.groups()
    reward, part = known.get(asked) or _with_part(asked, known)
    if not reward or not math.isfinite(float(limit)):
        raise ValueError(f"--fail-if {text!r}: {asked!r} is not scored; {nearest(asked, known)}")
    return Condition(reward, part, comparison, float(limit))


def _with_part(asked: str, known: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    reward, part = split_part(asked, known)
    whole, listed = known.get(reward, ("", ""))
    return (whole, part) if part and whole != TOTAL and not listed else ("", "")


def _known(rewards: Collection[str]) -> dict[str, tuple[str, str]]:
    """What a condition may call a reward or one of its listed parts -> (reward as asked for, part)."""
    found: dict[str, tuple[str, str]] = {}
    for reward in rewards:
        if is_plugin(reward):
            own = getattr(plugin_class(reward), "name", None)
            found |= {reward: (reward, ""), **({own: (reward, "")} if isinstance(own, str) else {})}
        else:
            found |= {one.name: (reward, one.part) for one in metrics_of([reward]).values()}
    return found


def _checked(condition: Condition, name: str, rows: Mapping[str, Mapping[str, Any]]) -> Checked:
    text, row = f"{name}{condition.comparison}{condition.limit:g}", rows.get(name)
    if row is None:
        eligible = rows.get(split_part(name, rows)[0], {}).get("eligible", 0)
        return Checked(text, "FAILED", None, None, None, 0, eligible)
    mean = row["mean"]
    failed = mean is None or OPERATORS[condition.comparison](mean, condition.limit)
    status: Outcome = "FAILED" if failed else "passed"
    return Checked(text, status, mean, row["low"], row["high"], row["n"], row["eligible"])


def _share(name: str, min_scored: float | None, row: Mapping[str, Any]) -> Checked:
    assert min_scored is not None
    share = row["n"] / row["eligible"] if row["eligible"] else 0.0
    status: Outcome = "passed" if share >= min_scored else "FAILED"
    return Checked(f"scored({name})<{min_scored:g}", status, share, None, None, row["n"], row["eligible"])
