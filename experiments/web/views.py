"""The page's own HTML: progress, clips with their scores, the history. Everything of others is escaped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.web.desk import SeenClip, label_of_job
from experiments.web.scores import ShownScore, told
from experiments.web.votes import WrittenSets

FILES = "gradio_api/file="  # Gradio's route to files of folders that it may show, behind its login
NAMES = {"video": "mp4", "audio": "wav"}
SIDES = "AB"


def progress_of(clip: SeenClip, now: float | None = None) -> tuple[str, float | None]:
    """(where a job is, in words with the service's estimate; its share 0 to 1, None where there is none)."""
    job = clip.job
    status = job.get("status", "")
    if clip.problem:
        return clip.problem, None
    wait = job.get("estimated_wait_seconds")
    left = f", about {seconds(wait)} left" if wait is not None else ", no estimate yet"
    if status == "queued":
        ahead = job.get("queue_position")
        behind = "" if ahead is None else f" behind {ahead} other{'s' * (ahead != 1)}" if ahead else ", next"
        return f"waits{behind}{left}", 0.0
    if status == "in_progress":
        again = f", attempt {job['attempt']}" if job.get("attempt", 1) > 1 else ""
        return f"is made, {job['progress']} %{again}{left}", job["progress"] / 100
    if status == "completed":
        took = (job.get("completed_at") or 0) - (job.get("created_at") or 0)
        return f"done in {seconds(max(took, 1))}", 1.0
    if status == "failed":
        return f"failed: {(job.get('error') or {}).get('message', 'no reason given')}", None
    return ("cancelled" if status == "cancelled" else status), None


def seconds(value: float) -> str:
    """7 s, 3 min 5 s or 2 h 10 min."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def when(job: Mapping[str, Any]) -> str:
    """Local time that a job was accepted."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(job["created_at"]))


def message_html(text: str, bad: bool = False) -> str:
    """A line on the page, "" for none."""
    if not text:
        return ""
    role = 'role="alert" class="nava-message nava-bad"' if bad else 'role="status" class="nava-message"'
    return f"<p {role}>{escape(text)}</p>"


def progress_html(pairs: Sequence[Sequence[SeenClip]], warnings: Sequence[str] = ()) -> str:
    """A line for each clip that is not done, and one for all."""
    clips = [clip for pair in pairs for clip in pair]
    if not clips:
        return ""
    done = sum(clip.job.get("status") == "completed" for clip in clips)
    lines = [f"<li>{_bar(clip)}</li>" for clip in clips if not (clip.ended and not clip.problem)]
    waits = [clip.job.get("estimated_wait_seconds") for clip in clips if not clip.ended]
    known = [wait for wait in waits if wait is not None]
    left = f", about {seconds(max(known))} left" if known and len(known) == len(waits) else ""
    told_of = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    return (
        f'<div class="nava-progress"><p role="status">{done} of {len(clips)} clips made{left}</p>'
        f"<ul>{''.join(lines)}</ul>{f'<ul class=nava-warned>{told_of}</ul>' if told_of else ''}</div>"
    )


def title_html(pair: Sequence[SeenClip]) -> str:
    """Above the clips of one seed, with a button that plays one after the other."""
    if not pair:
        return ""
    both = len(pair) == 2 and all(clip.files for clip in pair)
    button = '<button type="button" data-nava-both>Play A, then B</button>' if both else ""
    return f'<header class="nava-title"><h3>Seed {pair[0].seed}</h3>{button}</header>'


def clip_html(clip: SeenClip, side: str) -> str:
    """A clip's player. It changes only when the clip comes, so that nothing stops what is being played."""
    badge = f'<b class="nava-side">{side}</b> ' if side else ""
    inside = _player(clip, side) if clip.files else f'<div class="nava-empty">{_state(clip)}</div>'
    return f"<figure><figcaption>{badge}{escape(clip.label)}</figcaption>{inside}</figure>"


def facts_html(clip: SeenClip) -> str:
    """Below a clip: its scores with where they are from, files, warnings."""
    if not clip.files:
        return ""
    return _scores(clip) + _links(clip) + _warned(clip.job)


def _state(clip: SeenClip) -> str:
    if clip.ended or clip.problem:
        return f'<span class="nava-bad">{escape(progress_of(clip)[0])}</span>'
    return "is on its way"


def _player(clip: SeenClip, side: str) -> str:
    name = escape(f"{side or 'clip'}, seed {clip.seed}", quote=True)
    if "video" in clip.files:
        source = _url(clip.files["video"])
        return f'<video controls playsinline preload="auto" src="{source}" aria-label="{name}"></video>'
    return f'<audio controls preload="auto" src="{_url(clip.files["audio"])}" aria-label="{name}"></audio>'


def _scores(clip: SeenClip) -> str:
    if clip.scores is None:
        return '<p class="nava-scores nava-quiet">scores are made …</p>'
    rows = "".join(_score(one) for one in clip.scores)
    return f'<dl class="nava-scores">{rows}</dl>' if rows else ""


def _score(shown: ShownScore) -> str:
    quiet = ' class="nava-quiet"' if shown.score["value"] is None else ""
    return (
        f"<dt>{escape(shown.title)}</dt><dd{quiet}>{escape(told(shown))}"
        f"<small>{escape(shown.source)}</small></dd>"
    )


def _links(clip: SeenClip) -> str:
    links = [(NAMES[variant], path) for variant, path in clip.files.items()]
    lineage = Path(next(iter(clip.files.values()))).with_suffix(".json")
    links.append(("lineage (JSON)", lineage))
    listed = "".join(f'<a href="{_url(path)}" download="{path.name}">{name}</a>' for name, path in links)
    return f'<p class="nava-links">Download {listed}</p>'


def _warned(job: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{escape(str(line))}</li>" for line in job.get("warnings", ()))
    return f'<ul class="nava-warned">{lines}</ul>' if lines else ""


def _bar(clip: SeenClip) -> str:
    words, share = progress_of(clip)
    name = escape(f"{clip.label}, seed {clip.seed}")
    bar = "" if share is None else f'<progress max="1" value="{share:.2f}" aria-label="{name}"></progress>'
    bad = ' class="nava-bad"' if share is None and words != "cancelled" else ""
    return f"<span{bad}>{name}: {escape(words)}</span>{bar}"


def _url(path: Path) -> str:
    return escape(FILES + quote(str(path)), quote=True)


def history_row(service: str, job: Mapping[str, Any]) -> list[str]:
    """Cells of a job: HISTORY_COLUMNS."""
    words = " ".join(str(job["prompt"]).split())
    status = f"gone ({job['expired']})" if job.get("expired") else str(job["status"]).replace("_", " ")
    return [
        when(job),
        status,
        label_of_job(service, job),
        str(job["seed"]),
        words[:90] + "…" * (len(words) > 90),
    ]


def vote_html(sets: WrittenSets) -> str:
    """Where the pairs are, and the command that makes a vote of them."""
    new = f"{sets.added} pair{'s' * (sets.added != 1)} added, {sets.cases} in all."
    return (
        f'<div class="nava-vote"><p role="status" class="nava-message">{new} People vote on them with</p>'
        f"<pre>{escape(sets.command)}</pre></div>"
    )


HISTORY_COLUMNS = ["made", "state", "model", "seed", "prompt"]
