"""The parts' records as tables in Markdown."""

from __future__ import annotations

from typing import Any

from experiments.benchmarks.gpu_parts.catalog import PARTS
from pretrain.markdown import markdown_table


def table(found: dict[str, Any]) -> str:
    """What ran on what, a row per part of the file, and of each memory peak beside the plan's."""
    hardware = found["hardware"] + (f", {found['gpu_gib']} GiB" if "gpu_gib" in found else "")
    head = f"{hardware}, torch {found['torch']}, size {found['size']}, {found['date']}"
    rows = [
        [name, PARTS[name].what, part["status"], f"{part['seconds']:.0f}", _found(part)]
        for name, part in found["parts"].items()
    ]
    text = f"{head}\n\n" + markdown_table(["part", "what", "status", "seconds", "found"], rows)
    memory = [
        [
            f"{part}: {name}" if name != "step" else f"{part} of {figures['flavor']}",
            *(
                f"{figures['memory'][key]:.4g}"
                for key in ("measured_gib", "planned_gib", "measured_over_planned")
            ),
        ]
        for part, record in found["parts"].items()
        for name, figures in record.get("figures", {}).items()
        if "memory" in figures
    ]
    if memory:
        text += "\n\n" + markdown_table(["peak memory of", "measured, GiB", "plan, GiB", "ratio"], memory)
    commits = sorted({record["commit"] for record in found["parts"].values() if record.get("commit")})
    return text + (f"\n\ncommits: {', '.join(commits)}" if len(commits) > 1 else "")


def _found(part: dict[str, Any]) -> str:
    words = "; ".join(part["words"])
    return f"{part['reason']}; found: {words}" if part["reason"] and words else part["reason"] or words
