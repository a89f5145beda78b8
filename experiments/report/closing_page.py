"""The closing page of an alignment as one HTML file: tables, curves and clips side by side, no scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.closing_curves import held_out_curves
from experiments.report.examples import DRAWN, GAINS, LOSSES
from experiments.report.metric_keys import MetricsByName
from experiments.report.page import ROLES, data_uri, marked_prompt, page_environment
from experiments.scoring.few_clusters import FEWEST_JUDGED
from experiments.scoring.rows import ScoredRow, score_in, terms
from rewards.metric import Metric

EMBEDDED_BYTES = 64 << 20  # of clips inside the page; the rest are linked, beside it
SECTIONS = {  # why a prompt is shown -> heading, sentence
    DRAWN: ("Drawn at random", "From all prompts that are not below, whatever their scores."),
    LOSSES: ("Largest losses", "The prompts with the lowest gain."),
    GAINS: ("Largest gains", "The prompts with the highest gain."),
}


@dataclass(frozen=True)
class ClosingPage:
    """Content of the page; `before` and `after` are paired, `chosen`: why shown -> places in them."""

    result: Mapping[str, Any]
    known: MetricsByName
    before: Sequence[ScoredRow]
    after: Sequence[ScoredRow]
    gains: Sequence[float]
    chosen: Mapping[str, Sequence[int]]
    folder: Path  # rows' paths are relative to it
    log: Path | None


@dataclass(frozen=True)
class Shown:
    """A prompt with its two clips; `scores`: (title, before, after) as text."""

    prompt: str
    data_id: str
    gain: str
    videos: Sequence[tuple[str, str]]  # (label, source)
    heard: Sequence[tuple[str, str]]  # (label, transcript)
    scores: Sequence[tuple[str, str, str]]
    flags: Sequence[tuple[str, str]]


def closing_page(content: ClosingPage) -> str:
    left = [EMBEDDED_BYTES]
    sections = [
        (*SECTIONS[why], [_shown(content, place, left) for place in places])
        for why, places in content.chosen.items()
        if places
    ]
    names = {*content.result["metrics"], *(metric.scorer for metric in content.known.values())}
    curves = held_out_curves(content.log, names) if content.log else None
    environment = page_environment()
    environment.filters |= {"marked_prompt": marked_prompt, "data_uri": data_uri}
    environment.globals |= {"roles": ROLES}
    return environment.get_template("closing.html.j2").render(
        found=content.result,
        titles={name: metric.title for name, metric in content.known.items()},
        sections=sections,
        curves=curves,
        changes={name: change_of(metric) for name, metric in content.result["metrics"].items()},
    )


def change_of(metric: Mapping[str, Any]) -> str:
    """`better` or `worse` where the difference's interval leaves 0 out, else ''; `too few prompts` where all
    of them may have moved one way by chance."""
    if 0 < metric["difference"].get("clusters", metric["difference"]["n"]) < FEWEST_JUDGED:
        return "too few prompts"
    low, high = metric["difference"]["low"], metric["difference"]["high"]
    if low is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (metric["better"] == "higher") else "worse"


def _shown(content: ClosingPage, place: int, left: list[int]) -> Shown:
    sides = {"before": content.before[place], "after": content.after[place]}
    gain, metrics = content.gains[place], list(content.known.values())
    scorers = dict.fromkeys(metric.scorer for metric in metrics)
    return Shown(
        prompt=content.before[place]["prompt"],
        data_id=content.before[place]["data_id"],
        gain=f"{gain:+.2f}" if math.isfinite(gain) else "not measured",
        videos=[(label, _video(content.folder, row["path"], left)) for label, row in sides.items()],
        heard=[
            (f"{label}, {scorer}", text)
            for scorer in scorers
            for label, row in sides.items()
            if (text := score_in(row, scorer).text)
        ],
        scores=[
            (metric.title, _value(sides["before"], metric), _value(sides["after"], metric))
            for metric in metrics
        ],
        flags=[(label, flag) for label, row in sides.items() for flag in row.get("flags", ())],
    )


def _video(folder: Path, path: str, left: list[int]) -> str:
    """A data URI while the page may grow, else the file's place beside the page."""
    size = (folder / path).stat().st_size
    if size > left[0]:
        return path
    left[0] -= size
    return data_uri((folder / path).read_bytes(), "video/mp4")


def _value(row: ScoredRow, metric: Metric) -> str:
    (above,), (below,) = terms([row], metric)
    if math.isfinite(above) and below:
        return f"{above / below:.3f}"
    return score_in(row, metric.scorer).reason or "–"
