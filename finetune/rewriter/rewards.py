"""Rewards of rewrites as TRL's functions of (prompts, completions, **columns) -> one number each.

`source` is the column of short prompts, `row` their index in the prompts file. A rewrite that breaks a span
gets no clip: it scores as the worst clip of its group, so that lost words are never rewarded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from finetune.rewriter import form
from finetune.rewriter.language_model import text_of
from finetune.rewriter.spans import protect
from pretrain.config import nearest
from pretrain.prompt import PromptRow, parse

RewardFunction = Callable[..., list[float | None]]
NAMES = ("spans", "structure", "length", "clips")


class ClipScore(Protocol):
    """Scores the rewrites' clips; None or NaN = unscorable. Every rewrite keeps its row's spans."""

    def __call__(self, rewrites: Sequence[str], rows: Sequence[PromptRow]) -> Sequence[float | None]: ...


def spans(
    prompts: Sequence[Any], completions: Sequence[Any], source: Sequence[str], **_: Any
) -> list[float | None]:
    """1 where every span is kept verbatim and in order, else half the share of spans that are."""
    return [spans_kept(short, rewrite) for short, rewrite in _rewrites(source, completions)]


def structure(
    prompts: Sequence[Any], completions: Sequence[Any], source: Sequence[str], **_: Any
) -> list[float | None]:
    """Share of the form, in the prompt's language, that is there in order: 0 to 1."""
    return [form.structure(rewrite, form.form_of(short)) for short, rewrite in _rewrites(source, completions)]


def length(
    prompts: Sequence[Any], completions: Sequence[Any], source: Sequence[str], **_: Any
) -> list[float | None]:
    """1 in the wanted range, less outside of it."""
    return [form.length(rewrite, form.form_of(short)) for short, rewrite in _rewrites(source, completions)]


def fault(source: str, rewrite: str) -> str:
    """ "" where the rewrite keeps every span of the prompt and no placeholder is left, else the reason."""
    return protect(source).check(source, rewrite)


def spans_kept(source: str, rewrite: str) -> float:
    """1 where there is no `fault`; else half the longest common subsequence of spans over the longer list."""
    if not fault(source, rewrite):
        return 1.0
    wanted = [span.text for span in parse(source).spans]
    try:
        found = [span.text for span in parse(rewrite).spans]
    except ValueError:
        return 0.0
    return 0.5 * _common(wanted, found) / max(len(wanted), len(found), 1)


def clips_of(score: ClipScore, rows: Sequence[PromptRow]) -> RewardFunction:
    """The reward `clips`: scores of the rewrites' clips, one per distinct rewrite. Raises as `score`."""

    def clips(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        source: Sequence[str],
        row: Sequence[int],
        **_: Any,
    ) -> list[float | None]:
        rewrites = [rewrite for _, rewrite in _rewrites(source, completions)]
        whole = [not fault(short, rewrite) for short, rewrite in zip(source, rewrites, strict=True)]
        to_score = sorted(
            {(place, rewrite) for place, rewrite, kept in zip(row, rewrites, whole, strict=True) if kept}
        )
        scores = (
            list(score([rewrite for _, rewrite in to_score], [rows[place] for place, _ in to_score]))
            if to_score
            else []
        )
        if len(scores) != len(to_score):
            raise ValueError(
                f"the clips' score answered {len(scores)} values for {len(to_score)} rewrites; "
                "it must answer every one"
            )
        known = {key: _number(value) for key, value in zip(to_score, scores, strict=True)}
        values = [known.get(key) for key in zip(row, rewrites, strict=True)]
        return [
            value if kept else _worst(values, row, place)
            for value, kept, place in zip(values, whole, row, strict=True)
        ]

    return clips


def check_weights(weights: Mapping[str, float], scores_clips: bool) -> None:
    """Raises ValueError for unknown names or no reward left (`clips` counts only with `scores_clips`)."""
    for name in weights:
        if name not in NAMES:
            raise ValueError(f"rewards.{name}: unknown reward; {nearest(name, NAMES)}")
    if not any(weight for name, weight in weights.items() if scores_clips or name != "clips"):
        raise ValueError("rewards: none is left; give one a weight, or say how clips are scored")


def reward_functions(
    weights: Mapping[str, float], score: ClipScore | None = None, rows: Sequence[PromptRow] = ()
) -> tuple[list[RewardFunction], list[float]]:
    """TRL's reward_funcs and reward_weights; `clips` only with a score. Raises as `check_weights`."""
    check_weights(weights, score is not None)
    known: dict[str, RewardFunction] = {"spans": spans, "structure": structure, "length": length}
    if score is not None:
        known["clips"] = clips_of(score, rows)
    chosen = {name: weight for name, weight in weights.items() if weight and name in known}
    return [known[name] for name in chosen], list(chosen.values())


def _rewrites(source: Sequence[str], completions: Sequence[Any]) -> list[tuple[str, str]]:
    """(short prompt, what its rewrite is once the spans are back)."""
    return [
        (short, form.rewrite_of(short, text_of(made)))
        for short, made in zip(source, completions, strict=True)
    ]


def _worst(values: Sequence[float | None], row: Sequence[int], place: int) -> float | None:
    return min(
        (value for value, other in zip(values, row, strict=True) if other == place and value is not None),
        default=None,
    )


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(right) + 1)
    for word in left:
        before = best[:]
        for place, other in enumerate(right, start=1):
            best[place] = before[place - 1] + 1 if word == other else max(before[place], best[place - 1])
    return best[-1]
