"""The study of seeds as a page a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = (
    "wer_pocketsphinx_judge",
    "wer_pocketsphinx",
    "intelligibility_pocketsphinx_judge",
    "intelligibility_pocketsphinx",
    "sync_judge",
    "sync_mini",
    "sim_resemblyzer",
    "lip_loudness_correlation",
    "picture_noise_judge",
)


def page(study: Mapping[str, Any]) -> str:
    """Markdown: the quality gates over all seeds, every metric before and after, and each seed by itself."""
    together = study["together"]
    metrics = together["metrics"]
    lines = [
        f"# Alignment from {study['seeds']} seeds",
        "",
        f"{together['prompts']} prompts that no alignment saw, the same pretrained model and noise; each "
        "prompt's score is the mean over "
        "the seeds. Brackets: bootstrap 95 % intervals over prompts. Judges rewarded nothing; raters are "
        "SIMULATED on the judges.",
        "",
        "| quality gate, all seeds | measured | at least | at most | value | result |",
        "|---|---|---|---|---|---|",
        *(_gate(result) for result in study["gates"]),
        "",
        "| metric | role | before | after | codec | change | share of the gap closed |",
        "|---|---|---|---|---|---|---|",
        *(_metric(name, metrics[name]) for name in SHOWN if name in metrics),
        "",
        "| seed | s of alignment | "
        + " | ".join(f"closed, {name}" for name in ("wer_pocketsphinx_judge", "sync_judge"))
        + " | change of sim_resemblyzer | GSB (simulated) |",
        "|---|---|---|---|---|---|",
        *(_seed(seed, found) for seed, found in study["each"].items()),
        "",
        "| guardrail | unit | limits | before | after | beyond before, after |",
        "|---|---|---|---|---|---|",
        *(_guardrail(name, found) for name, found in together["guardrails"].items()),
        "",
    ]
    return "\n".join(lines)


def _gate(found: Mapping[str, Any]) -> str:
    limits = ("–" if found[key] is None else f"{found[key]:g}" for key in ("at_least", "at_most"))
    return (
        f"| {found['metric']}, {found['statistic']} | {_cell(found)}, n {found['n']} {found['counted']} | "
        f"{' | '.join(limits)} | {found['value']} | {found['status']} |"
    )


def _metric(name: str, found: Mapping[str, Any]) -> str:
    cells = [_cell(found[key]) for key in ("before", "after", "codec", "difference")]
    return f"| {name} | {found['role']} | {' | '.join(cells)} | {_cell(found.get('closed'))} |"


def _seed(seed: str, found: Mapping[str, Any]) -> str:
    metrics, gsb = found["metrics"], found["raters"].get("gsb", {}).get("overall")
    closed = [_cell(metrics[name].get("closed")) for name in ("wer_pocketsphinx_judge", "sync_judge")]
    voted = f"{gsb['gsb']:+.3f} ({gsb['gsb_low']:+.3f}..{gsb['gsb_high']:+.3f})" if gsb else "–"
    return (
        f"| {seed} | {found['align_seconds']:.0f} | {' | '.join(closed)} | "
        f"{_cell(metrics['sim_resemblyzer']['difference'])} | {voted} |"
    )


def _guardrail(name: str, found: Mapping[str, Any]) -> str:
    limits = (
        f"{'' if found['low'] is None else found['low']}..{'' if found['high'] is None else found['high']}"
    )
    flagged = f"{found['flagged_before']}, {found['flagged_after']}"
    return (
        f"| {name} | {found['unit']} | {limits} | {_cell(found['before'])} | {_cell(found['after'])} | "
        f"{flagged} |"
    )


def _cell(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["mean"] is None:
        return "–"
    if interval["low"] is None:
        return str(interval["mean"])
    return f"{interval['mean']:.3f} ({interval['low']:.3f}..{interval['high']:.3f})"
