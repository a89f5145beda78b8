"""The report as one self-contained HTML page; pictures and clips are embedded as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.report.before_after import beyond_codec, beyond_from_the_start
from experiments.report.gates import GateResult
from experiments.report.metric_keys import (
    SOURCES,
    SUFFIXES,
    Metrics,
    MetricsByName,
    by_set,
    count_of,
    main_metrics,
    most_clips,
    reported_metrics,
    title,
)
from experiments.report.summary import SIMULATED, gsb_words, kept_words

TEMPLATES = Path(__file__).parent / "templates"
ROLES = {"judge": "judge", "reward": "rewarded", "watched": "only watched"}
SOURCE_NAMES = {
    "real": "Real clip",
    "codec": "Real, through the codec",
    "generated": "Generated",
    "exchanged": "Generated, references exchanged",
    "before": "Before alignment",
    "aligned": "After alignment",
}


@dataclass(frozen=True)
class Card:
    """One clip on the page."""

    source: str
    media: bytes  # MP4; WAV where there is sound alone
    picture: bytes  # PNG
    transcript: str  # words
    voices: str  # nearest
    words: str  # expected transcript
    wanted_voices: str
    lips: float | None  # correlation with loudness
    has_picture: bool = True
    has_sound: bool = True


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and rows of (prompt, cards)."""

    heading: str
    about: str
    rows: Sequence[tuple[str, Sequence[Card]]]


@dataclass(frozen=True)
class AlignmentPart:
    """Result of `before_after`, clips of the same prompts, and two PNG pictures."""

    found: Mapping[str, Any]
    examples: Section
    dots: bytes
    curves: bytes | None


def page(
    metrics: Metrics,
    gates: Sequence[GateResult],
    sections: Sequence[Section],
    losses: bytes | None,
    facts: Mapping[str, Any],
    alignment: AlignmentPart | None = None,
    known: MetricsByName | None = None,
) -> str:
    """The whole page; `facts` are shown as given, name and value.

    `known`: metrics with titles, None = the catalog's.
    """
    grid = by_set(metrics)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            metrics=metrics,
            title=partial(title, known=known or reported_metrics()),
            main=main_metrics(metrics),
            by_set=grid,
            others=list(dict.fromkeys(name for column in grid.values() for name in column)),
            gates=gates,
            first=sections[0],
            rest=sections[1:],
            losses=losses,
            facts=facts,
            alignment=alignment,
            beyond=beyond_codec(alignment.found) if alignment else [],
            from_start=beyond_from_the_start(alignment.found) if alignment else [],
        )
    )


def marked_prompt(prompt: str) -> Markup:
    """The prompt as HTML with its spoken words marked."""
    marked = str(escape(prompt)).replace("&lt;S&gt;", "<mark>").replace("&lt;E&gt;", "</mark>")
    return Markup(marked)


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def page_environment() -> Environment:
    """Of the templates of pages: text is escaped, and a name that is not given is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"count_of": count_of, "most_clips": most_clips}
    return made


def _environment() -> Environment:
    made = page_environment()
    made.filters |= {
        "marked_prompt": marked_prompt,
        "data_uri": data_uri,
        "gsb_words": gsb_words,
        "kept_words": kept_words,
    }
    made.globals |= {
        "sources": SOURCES,
        "sides": ("before", "after", "codec"),
        "suffixes": SUFFIXES,
        "source_names": SOURCE_NAMES,
        "roles": ROLES,
        "simulated": SIMULATED,
    }
    return made
