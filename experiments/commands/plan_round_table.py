"""The plan of an alignment on one screen: seconds, memory and cost of a round by part."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show_round(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `nava plan --align` found."""
    console, clip = console or Console(), found["clip"]
    size = f"{clip['frames']} frames of {clip['height']} x {clip['width']}, {clip['tokens']:,} tokens"
    for name, phase in found["phases"].items():
        title = f"a round of {name} on {found['gpus']} GPUs: {phase['clips_per_round']} clips of {size}"
        console.print(_round(title, phase))
        console.print(_whole(name, phase))
    if found["not_counted"]:
        console.print(f"Not counted: {', '.join(found['not_counted'])} (give --seconds-per-clip)")
    console.print("Assumptions:")
    for line in found["assumptions"]:
        console.print(f"  - {line}")


def _round(title: str, phase: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for index, column in enumerate(("part", "seconds", "share", "PFLOP", "GiB per GPU", "cost")):
        table.add_column(column, justify="right" if index else "left")
    memory = phase["memory_per_gpu_gib"]
    for name, part in phase["parts"].items():
        held = memory.get({"held_out": "rollout"}.get(name, name))
        table.add_row(
            name.replace("_", " ") if name == "held_out" else name,
            f"{part['seconds']:,.2f}",
            f"{part['share']:.1%}",
            f"{part['flops'] / 1e15:,.2f}",
            "" if held is None else f"{held:,.1f}",
            f"{part['cost']:,.3f}",
        )
    for name in memory.keys() - phase["parts"].keys() - {"rollout"}:
        table.add_row(name, "", "", "", f"{memory[name]:,.1f}", "")  # whose seconds are not counted
    table.add_section()
    flops = sum(part["flops"] for part in phase["parts"].values())
    whole = phase["round"]
    table.add_row(
        "round",
        f"{whole['seconds']:,.2f}",
        "",
        f"{flops / 1e15:,.2f}",
        f"{phase['peak_gib']:,.1f}",
        f"{whole['cost']:,.3f}",
    )
    return table


def _whole(name: str, phase: dict[str, Any]) -> str:
    fits = [size.removesuffix("_gb") for size, does in phase["fits"].items() if does]
    room = f"fits on {', '.join(fits)} GB" if fits else "fits on no GPU of up to 141 GB"
    whole = phase["phase"]
    return (
        f"{phase['rounds']} rounds of {name}: {whole['hours']:,.1f} hours, {whole['gpu_hours']:,.0f} GPU "
        f"hours, cost {whole['cost']:,.0f}; {room}\n"
    )
