"""The page's part about alignment: judges and rewards before and after, clips of the same prompts, simulated
raters, guardrails."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from experiments.report.html import Section, cell, png_uri, section_html, tiles
from experiments.report.summary import SIMULATED, TITLES, gsb_words, kept_words
from experiments.report.verdicts import alignment_verdicts, beyond_codec, beyond_from_the_start

Found = Mapping[str, Any]  # what `evaluate` wrote
ROLES = {"judge": "judge", "reward": "rewarded", "watched": "only watched"}


def alignment_html(found: Found, examples: Section, dots: bytes, curves: bytes | None) -> str:
    """The whole part. `dots` and `curves` are PNG pictures of `report_alignment_pictures`."""
    parts = [
        "<h2>Before and after alignment</h2>"
        f"<p class=soft>The same {found['prompts']} prompts, kept out of alignment, with the same seeds, by "
        "the pretrained and by the "
        "aligned model. Judges are a second recogniser set-up and a second sync network that no rubric "
        "weighs; what was rewarded stands "
        "beside them. Training votes (gsb_dpo) that were simulated looked at the judges, as these raters "
        "do: what they moved is no "
        "independent gain. Codec: real clips through the codec, about the most that can be reached.</p>",
        tiles("What alignment must reach", alignment_verdicts(found), level=3),
        f'<h3>Judges beside rewards</h3><img class=wide src="{png_uri(dots)}" alt="each metric before, '
        'after and of the codec">',
        _table(found),
        section_html(examples, level=3) if examples.rows else "",
        _raters(found.get("raters", {})),
        _guardrails(found),
    ]
    if curves is not None:
        parts.append(
            f'<h3>Rewards over the rounds</h3><img class=wide src="{png_uri(curves)}" alt="rewards over the '
            'rounds of alignment">'
        )
    return "\n".join(parts)


def _table(found: Found) -> str:
    beyond, from_start = beyond_codec(found), beyond_from_the_start(found)
    rows = []
    for name, metric in found["metrics"].items():
        cells = "".join(cell(metric.get(key)) for key in ("before", "after", "codec", "difference", "closed"))
        where = "driven beyond" if name in beyond else "beyond before too" if name in from_start else "no"
        lost = metric["unscored"]
        unscored = (
            f", {lost['before']} and {lost['after']} clips unscored"
            if lost["before"] or lost["after"]
            else ""
        )
        about = (
            f"{ROLES[metric['role']]}, {metric['better']} is better, {metric['difference']['n']} "
            f"prompts{unscored}"
        )
        title = escape(TITLES[name].removesuffix(" (lower is better)"))
        rows.append(
            f"<tr><td>{title}<br><code>{escape(name)}</code><br><small>{about}</small></td>{cells}<td>{where}</td></tr>"
        )
    names = ("metric", "before", "after", "codec", "after − before", "gap closed", "beyond the codec")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        "<p class=soft>Mean with its bootstrap 95 % interval; differences over the same prompts. Gap "
        "closed: (before − after) / "
        f"(before − codec), prompts and the {found['codec_clips']} codec clips drawn apart; a dash where "
        "there is no measurable gap or "
        f"none was asked for. Seed {found['seed']}.</p><div "
        f"class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _raters(raters: Found) -> str:
    if not raters:
        return ""
    about = f"<h3>{SIMULATED}</h3><p class=soft>" + (
        "Votes on every pair of clips, before beside after, made by a program: a panel of simulated raters "
        "with different tastes, noise "
        "and side bias, who look at what the judges measured. Good: the aligned clip was preferred. GSB = "
        "(good − bad) / votes.</p>"
    )
    if "reason" in raters:
        return about + f"<p>{escape(raters['reason'])}</p>"
    bars = "".join(_bar(axis, gsb) for axis, gsb in raters["gsb"].items())
    return f"{about}{bars}<p class=soft>{escape(kept_words(raters))}.</p>"


def _bar(axis: str, gsb: Found) -> str:
    total = gsb["good"] + gsb["same"] + gsb["bad"]
    pieces = "".join(
        f'<span class={key} style="width:{100 * gsb[key] / total:.2f}%" title="{key} {gsb[key]} of '
        f'{total}">{key} {gsb[key]}</span>'
        for key in ("good", "same", "bad")
        if gsb[key]
    )
    words = escape(f"{gsb_words(gsb)}; {total} votes of {gsb['raters']} raters on {gsb['prompts']} prompts")
    return (
        f"<div class=votes><span>{escape(axis)}, simulated</span><div "
        f"class=bar>{pieces}</div><small>{words}</small></div>"
    )


def _guardrails(found: Found) -> str:
    rows = []
    for name, guard in found["guardrails"].items():
        bounds = (("at least", guard["low"]), ("at most", guard["high"]))
        limits = ", ".join(f"{word} {value:g}" for word, value in bounds if value is not None)
        cells = "".join(cell(guard[key]) for key in ("before", "after", "codec"))
        flagged = "".join(f"<td>{guard[f'flagged_{key}']}</td>" for key in ("before", "after", "codec"))
        unit = f"<br><small>{escape(guard['unit'])}</small>"
        rows.append(f"<tr><td>{escape(name)}{unit}</td><td>{limits or 'none'}</td>{cells}{flagged}</tr>")
    names = (
        "guardrail",
        "limit",
        "before",
        "after",
        "codec",
        "flagged before",
        "flagged after",
        "flagged codec",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    sizes = f"{found['prompts']} clips before and after, {found['codec_clips']} of the codec"
    return (
        "<h3>Guardrails</h3><p class=soft>What a clip must not lose while rewards rise; watched, never "
        f"rewarded. {sizes}; a clip beyond a "
        f"limit is flagged.</p><div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )
