"""The report as one HTML page that needs no other file: pictures and clips lie in it as data."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from experiments.report.before_after import Verdict, verdict_word
from experiments.report.summary import (
    SOURCES,
    SUFFIXES,
    TITLES,
    Metrics,
    by_set,
    main_metrics,
    title,
    verdicts,
)

STYLE = """
:root { --ink:#22282e; --soft:#5f6b74; --line:#e1e5e8; --paper:#fff; --wash:#f5f7f8; --good:#1d7a4c; --bad:#b3372f; --wait:#8a6510; }
* { box-sizing:border-box } body { margin:0; background:var(--wash); color:var(--ink); font:16px/1.5 system-ui,sans-serif }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px } h1 { font-size:1.9rem; line-height:1.2; margin:0 0 6px }
h2 { font-size:1.25rem; margin:40px 0 6px } p { margin:4px 0 12px; max-width:75ch } .soft { color:var(--soft) }
.row { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:14px; margin:12px 0 }
.row > .prompt { font-size:.95rem; margin-bottom:10px } mark { background:#fde8c8; padding:0 .25em; border-radius:4px }
.beside { display:grid; grid-template-columns:repeat(auto-fill,minmax(340px,1fr)); gap:0 14px }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(250px,1fr)); gap:14px }
.card video { width:150px; height:150px; border-radius:6px; display:block; cursor:pointer; flex:none }
.card video:focus-visible, .card video:hover { outline:3px solid #c8642a }
.card .top { display:flex; gap:12px; align-items:flex-start } .card img { width:100%; margin-top:8px; display:block; border-radius:4px }
.card .source { font-weight:600 } .card dl { margin:0; font-size:.86rem } .card dt { color:var(--soft) } .card dd { margin:0 0 3px }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(210px,1fr)); gap:12px; margin:14px 0 }
.tile { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:12px 14px; font-size:.9rem }
.tile b { font-size:1.5rem; display:block } .pass { color:var(--good) } .short { color:var(--bad) } .open { color:var(--wait) }
.scroll { overflow-x:auto; background:var(--paper); border:1px solid var(--line); border-radius:10px }
table { border-collapse:collapse; width:100%; font-size:.9rem } h3 { margin:22px 0 8px; font-size:1rem }
th,td { padding:7px 12px; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap } tr:last-child td { border:0 }
th:first-child,td:first-child { text-align:left; white-space:normal } td code, td small { color:var(--soft); font-size:.8rem }
.tile b small { font-size:.85rem; font-weight:400 }
.votes { display:grid; grid-template-columns:9em 1fr 22em; gap:6px 12px; align-items:center; margin:8px 0; font-size:.9rem }
.votes .bar { display:flex; height:22px; border-radius:5px; overflow:hidden }
.bar span { color:#fff; font-size:.8rem; text-align:center; overflow:hidden; white-space:nowrap; line-height:22px }
.good { background:var(--good) } .same { background:#76828b } .bad { background:var(--bad) }
.wide { width:100%; border-radius:10px; border:1px solid var(--line) }
"""
SCRIPT = """
function hear(clip) { const silent = clip.muted; document.querySelectorAll('video').forEach(v => v.muted = true);
  clip.muted = !silent; clip.currentTime = 0; clip.play() }
document.querySelectorAll('video').forEach(v => { v.onclick = () => hear(v); v.onkeydown = e => { if (e.key == 'Enter') hear(v) } })
"""
SOURCE_NAMES = {
    "real": "Real clip",
    "codec": "Real, through the codec",
    "generated": "Generated",
    "before": "Before alignment",
    "aligned": "After alignment",
}


@dataclass(frozen=True)
class Card:
    """One clip on the page."""

    source: str
    mp4: bytes
    picture: bytes  # PNG
    heard: str
    words: str  # that should be heard
    voices: str  # nearest voices
    wanted_voices: str
    lips: float | None  # correlation with loudness


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and rows of (prompt, cards)."""

    heading: str
    about: str
    rows: Sequence[tuple[str, Sequence[Card]]]


def page(
    metrics: Metrics,
    sections: Sequence[Section],
    losses: bytes | None,
    facts: Mapping[str, Any],
    alignment: str = "",
) -> str:
    """The whole page; `facts` are shown as they are, name and value; `alignment` is HTML of that part, ""
    where there is none."""
    first, *others = sections
    parts = [
        "<h1>NAVA mini: clips that speak</h1>",
        "<p class=soft>A small model of sound and picture, trained on this machine from rendered faces and "
        "synthesised voices. "
        "Click a clip to hear it. Each is made from its prompt and, for the voice, a reference "
        "recording.</p>",
        section_html(first),
        tiles("What must hold", verdicts(metrics)),
        "<h2>Measured</h2><p class=soft>Mean over clips with its bootstrap 95 % interval. The codec's round "
        "trip is about the most a "
        "model can reach that speaks through this codec. A dash: not measured there.</p>",
        _table(metrics),
        _other_sets(metrics),
        alignment,
    ]
    if losses is not None:
        parts.append("<h2>Training</h2><p class=soft>Loss of each modality over the stages.</p>")
        parts.append(f'<img class=wide src="{png_uri(losses)}" alt="loss curves">')
    parts += [section_html(section) for section in others if section.rows]
    parts += [_facts(facts), _method()]
    body = "\n".join(parts)
    script = f"<script>{SCRIPT}</script>"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        'initial-scale=1"><title>NAVA mini</title>'
    )
    return (
        "<!doctype html>\n<html "
        f'lang="en"><head>{head}<style>{STYLE}</style></head><body><main>\n{body}\n</main>{script}</body></html>\n'
    )


def marked_prompt(prompt: str) -> str:
    """The prompt as HTML with its spoken words marked."""
    return escape(prompt).replace(escape("<S>"), "<mark>").replace(escape("<E>"), "</mark>")


def section_html(section: Section, level: int = 2) -> str:
    """A heading, its sentence, and the cards of every prompt."""
    rows = "".join(
        f"<div class=row><div class=prompt>{marked_prompt(prompt)}</div><div "
        f"class=cards>{''.join(map(_card, cards))}</div></div>"
        for prompt, cards in section.rows
    )
    beside = "beside" if all(len(cards) == 1 for _, cards in section.rows) else ""
    return (
        f"<h{level}>{escape(section.heading)}</h{level}><p class=soft>{escape(section.about)}</p><div "
        f'class="{beside}">{rows}</div>'
    )


def _card(card: Card) -> str:
    lips = "–" if card.lips is None else f"{card.lips:.2f}"
    facts = (
        ("recognised", escape(card.heard or "nothing"), card.heard == card.words),
        ("nearest voice", escape(card.voices or "–"), card.voices == card.wanted_voices),
        ("lips and loudness", lips, None),
    )
    items = "".join(f"<dt>{name}</dt><dd>{value}{_sign(right)}</dd>" for name, value, right in facts)
    name, data = SOURCE_NAMES[card.source], base64.b64encode(card.mp4).decode()
    video = (
        '<video autoplay muted loop playsinline tabindex=0 title="click to hear" '
        f'src="data:video/mp4;base64,{data}"></video>'
    )
    picture = f'<img src="{png_uri(card.picture)}" alt="{name}: frames, spectrogram and waveform">'
    return (
        f"<div class=card><div class=source>{name}</div><div "
        f"class=top>{video}<dl>{items}</dl></div>{picture}</div>"
    )


def _sign(right: bool | None) -> str:
    if right is None:
        return ""
    return (
        ' <span class=pass title="right">✓</span>' if right else ' <span class=short title="wrong">✗</span>'
    )


def tiles(heading: str, found: Sequence[Verdict], level: int = 2) -> str:
    """A heading and a tile for each verdict."""
    return f"<h{level}>{escape(heading)}</h{level}><div class=tiles>{''.join(map(_tile, found))}</div>"


def _tile(verdict: Verdict) -> str:
    style = {True: "pass", False: "open" if verdict.aim else "short", None: "open"}[verdict.met]
    digits = 3 if verdict.interval and max(map(abs, verdict.interval)) < 0.1 else 2
    value = (
        "–"
        if verdict.value is None
        else str(verdict.value)
        if isinstance(verdict.value, int)
        else f"{verdict.value:.{digits}f}"
    )
    ends = [f"{end:.{digits}f}" for end in verdict.interval or ()]
    interval = f" <small class=soft>{' to '.join(ends)}</small>" if ends else ""
    return (
        "<div "
        f"class=tile>{escape(title(verdict.metric))}<b>{value}{interval}</b>{'aim' if verdict.aim else 'must be'} "
        f"{escape(verdict.limit)} <span class={style}>{verdict_word(verdict)}</span><br>"
        f"<span class=soft>{verdict.n} {escape(verdict.counted)}</span></div>"
    )


def _table(metrics: Metrics) -> str:
    """The main set: real, codec and generated side by side."""
    rows = []
    for metric in main_metrics(metrics):
        cells = "".join(cell(metrics[metric].get(source)) for source in SOURCES)
        clips = max(interval["n"] for interval in metrics[metric].values())
        rows.append(
            f"<tr><td>{escape(title(metric))}<br><code>{escape(metric)}</code></td>{cells}<td>{clips}</td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in ("metric", *SOURCES, "clips"))
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _other_sets(metrics: Metrics) -> str:
    """Generated clips of the other prompt sets, a column each."""
    grid = by_set(metrics)
    if not grid:
        return ""
    head = "".join(f"<th>{escape(SUFFIXES[suffix])}<br><code>{suffix}</code></th>" for suffix in grid)
    bases = list(dict.fromkeys(base for column in grid.values() for base in column))
    rows = "".join(
        f"<tr><td>{escape(TITLES[base])}</td>{''.join(cell(column.get(base)) for column in grid.values())}</tr>"
        for base in bases
    )
    return (
        "<h3>Generated, other prompts</h3><div "
        f"class=scroll><table><tr><th>metric</th>{head}</tr>{rows}</table></div>"
    )


def cell(interval: Mapping[str, Any] | None) -> str:
    """A table's cell: the mean over its interval."""
    if interval is None or interval["mean"] is None:
        return "<td>–</td>"
    return (
        f"<td>{interval['mean']:.3f}<br><small>{interval['low']:.3f} to {interval['high']:.3f}</small></td>"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    return f"<h2>This run</h2><div class=scroll><table>{rows}</table></div>"


def _method() -> str:
    return (
        "<h2>How it was measured</h2><p class=soft>Words: PocketSphinx with a grammar of any number of the "
        "corpus' words, on "
        "peak-normalised sound; errors over words of all clips. Voices: Resemblyzer embeddings; the nearest "
        "mean of real "
        "utterances, the clip itself left out. Sync: two small SyncNets trained here on other clips, one to "
        "reward and one that only "
        "judges; their zero-lag statistic, and Sync-C and Sync-D as published. Lips: darkness of the "
        "mouth's box against loudness, "
        "frame by frame; not measured where the camera moves. "
        "These are small stand-ins and their names say so: none of the numbers can be compared with a "
        "published table. Clips that cannot "
        "be scored (silence, a still mouth) take no part and are missing from the counts.</p>"
    )


def png_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
