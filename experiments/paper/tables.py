"""A benchmark's result as markdown: the published systems with ours below, then every metric with coverage
and interval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.scoring.summary import number, span
from pretrain.files import replacing
from pretrain.markdown import markdown_table

OURS = "this run"
NO_CLIP = "no clip"  # of clips that others made


def write_tables(result: Mapping[str, Any], out: Path) -> list[Path]:
    """`table.md` and `table.json` in `out`; the paths."""
    texts = {"table.md": markdown(result), "table.json": json.dumps(result, indent=1, allow_nan=False) + "\n"}
    for name, text in texts.items():
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def markdown(result: Mapping[str, Any]) -> str:
    """The whole page; what could not be measured says why, and stands under no published name."""
    parts = [
        f"# {result['benchmark']}",
        f"{result['clips']} of {result['cases']} cases have a clip. Means are over scored cases.",
    ]
    if without := {reason: count for reason, count in result.get("without", {}).items() if reason != NO_CLIP}:
        rows = [[str(count), reason] for reason, count in without.items()]
        parts += [
            "## Cases without a clip, which count as not scored",
            markdown_table(["cases", "why"], rows),
        ]
    if result["paper"]:
        parts += ["## Beside the published figures", _beside(result)]
    parts += ["## The benchmark's metrics", _metrics(result)]
    if result["own"]:
        parts += ["## Scores of their own name (comparable with no published figure)", _own(result["own"])]
    if result["composites"]:
        told = {
            name: "inputs missing" if value is None else f"{value:.4f}"
            for name, value in result["composites"].items()
        }
        parts += [
            "## Verse-Bench composites, from complete inputs only",
            markdown_table(list(told), [list(told.values())]),
        ]
    return "\n\n".join(parts) + "\n"


def metrics_to_log(result: Mapping[str, Any]) -> dict[str, float]:
    """Flat numbers for MLflow: means, interval ends and coverage of what was scored."""
    found: dict[str, float] = {}
    for group in ("metrics", "own"):
        for name, row in result[group].items():
            key = f"{group}.{name}".replace(" ", "_").replace("/", "_")
            found[f"{key}.coverage"] = row["n"] / row["eligible"] if row["eligible"] else 0.0
            parts = {key: row["mean"], f"{key}.low": row["low"], f"{key}.high": row["high"]}
            found |= {name: value for name, value in parts.items() if value is not None}
    return found | {
        f"composites.{name}": value for name, value in result["composites"].items() if value is not None
    }


def _beside(result: Mapping[str, Any]) -> str:
    labels = list(dict.fromkeys(label for figures in result["paper"].values() for label in figures))
    rows = [
        [system, *(number(figures.get(label)) for label in labels)]
        for system, figures in result["paper"].items()
    ]
    return markdown_table(["system", *labels], [*rows, [OURS, *(_ours(result, label) for label in labels)]])


def _ours(result: Mapping[str, Any], label: str) -> str:
    if label == "VideoQ":
        value = result["composites"].get("S_video")
        return "weights missing" if value is None else f"{value:.4g} ((AS + ID) / 2)"
    row = result["metrics"][label]
    if row["mean"] is None:
        return row["status"]
    return f"{row['mean']:.4g} [{span(row)}] ({row['n']}/{row['eligible']})"


def _metrics(result: Mapping[str, Any]) -> str:
    rows = []
    for label, row in result["metrics"].items():
        arrow = "up" if row["higher_is_better"] else "down"
        why = f"{row['status']}: {row['needs']}" if row["status"] == "weights missing" else _reasons(row)
        rows.append(
            [
                label,
                arrow,
                number(row["mean"]),
                span(row),
                f"{row['n']}/{row['eligible']}",
                number(row["paper"].get("NAVA")),
                why,
            ]
        )
    return markdown_table(
        ["metric", "better", "mean", "95 % interval", "scored/eligible", "NAVA (paper)", "remarks"], rows
    )


def _own(own: Mapping[str, Any]) -> str:
    rows = [
        [name, number(row["mean"]), span(row), f"{row['n']}/{row['eligible']}", _reasons(row)]
        for name, row in own.items()
    ]
    return markdown_table(["score", "mean", "95 % interval", "scored/eligible", "remarks"], rows)


def _reasons(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in row["reasons"].items())
