"""Descriptions of runs in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.markdown import markdown_table


@dataclass(frozen=True)
class StageLine:
    """A stage of an invocation. state: kept, running, or how the run ended; seconds: None while it runs."""

    stage: str
    key: str
    state: str
    seconds: float | None


def description(tags: Mapping[str, str], stages: Sequence[StageLine], results: str) -> str:
    """What an invocation did: from which commit, what came out, and its stages with links.

    tags: of the run; results: Markdown.
    """
    commit = tags.get("mlflow.source.git.commit", "")[:10] or "no git"
    changed = " with changes" if tags.get("git.dirty") == "true" else ""
    parts = [f"**{tags.get('nava.invocation', 'run')}**, code of commit `{commit}`{changed}"]
    parts += [f"### Results\n\n{results}"] if results else []
    if stages:
        rows = [(f"[{line.stage}](run:{line.key})", line.state, _duration(line.seconds)) for line in stages]
        parts.append("### Stages\n\n" + markdown_table(("stage", "state", "time"), rows))
    return "\n\n".join(parts) + "\n"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
