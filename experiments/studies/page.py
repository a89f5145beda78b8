"""Render a study's JSON as Markdown: `templates/NAME.md.j2`, which extends `templates/study.md.j2`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

Found = Mapping[str, Any]  # {mean, low, high}, of a difference also {verdict}


def render(study: Mapping[str, Any]) -> str:
    """Markdown of the JSON that `Study.publish` writes."""
    pages = Environment(
        loader=PackageLoader("experiments.studies"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (interval, signed, percent, bold, arrow, counts, chosen_rate)
    pages.filters |= {one.__name__: one for one in filters}
    return pages.get_template(f"{study['study']}.md.j2").render(study)


def interval(found: Found | None, missing: str = "-", signs: tuple[str, str, str] = ("[", ", ", "]")) -> str:
    """`0.123 [0.100, 0.150]`; the mean alone where it has no interval."""
    if found is None or found["mean"] is None:
        return missing
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} {signs[0]}{found['low']:.3f}{signs[1]}{found['high']:.3f}{signs[2]}"


def signed(found: Found) -> str:
    """`+0.123 [+0.100, +0.150]`; the mean alone where it has no interval."""
    if found["mean"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def percent(found: Found) -> str:
    """`12 % [10, 15]`."""
    if found["mean"] is None:
        return "-"
    return f"{100 * found['mean']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


def bold(text: str, difference: Found | None) -> str:
    """Bold if the interval of the difference excludes 0."""
    apart = difference and difference["verdict"] in ("better", "worse", "favours", "against")
    return f"**{text}**" if apart else text


def arrow(name: str, metrics: Mapping[str, Mapping[str, bool]]) -> str:
    return f"{name} {'↑' if metrics[name]['higher_is_better'] else '↓'}"


def chosen_rate(losses: Mapping[str, float]) -> str:
    """The factor of the recipe's learning rates with the lowest loss, those tried, and whether it lies at
    their end, so that a still better one may lie beyond."""
    if not losses:
        return "the recipe's"
    tried = sorted(losses, key=float)
    best = min(tried, key=lambda factor: losses[factor])
    end = {tried[0]: ", the lowest tried", tried[-1]: ", the highest tried"}.get(best, "")
    said = ", ".join(f"{factor}: {losses[factor]:.3f}" for factor in tried)
    return f"{best} of the recipe's{end} (validation loss {said})"


def counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
