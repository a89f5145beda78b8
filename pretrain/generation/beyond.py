"""Warnings where a clip is asked for that is unlike all that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pretrain.clip_kind import kind_of
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import ClipJob
from pretrain.prompt import PromptRow


def beyond(jobs: Iterable[ClipJob], config: GenerateConfig, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`{line, field, message}` of each row that is longer, shorter, of another size or rate, or says more.

    facts: of the model folder; one without `trained_on`, such as imported weights, is not warned of.
    """
    known = facts.get("trained_on")
    if not isinstance(known, Mapping):
        return []
    rows = {job.row.data_id: job.row for job in jobs}
    return [
        {"line": row.line, "field": field, "message": f"{message}; expect worse"}
        for row in rows.values()
        for field, message in _of_row(row, config, known)
    ]


def _of_row(row: PromptRow, config: GenerateConfig, known: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    kind = kind_of(row, config)
    seconds = kind.num_frames / config.fps
    if kind.video and (lengths := known.get("num_frames")):
        if not lengths[0] <= kind.num_frames <= lengths[1]:
            yield (
                "num_frames",
                (f"{kind.num_frames} frames ({seconds:.2f} s), the model was trained on {_span(lengths)}"),
            )
        if (fps := known.get("fps")) and config.fps not in fps:
            listed = ", ".join(f"{rate:g}" for rate in fps)
            yield "fps", f"{config.fps:g} frames a second, the model was trained on {listed}"
        size = f"{kind.width}x{kind.height}"
        if (sizes := known.get("sizes")) and size not in sizes:
            more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
            yield "width", f"{size} pixels, the model was trained on {', '.join(sizes[:3])}{more}"
    elif not kind.video and (sounds := known.get("sound_s")) and seconds > sounds[1] + 0.05:
        yield "num_frames", f"{seconds:.2f} s of sound, the model was trained on up to {sounds[1]:.2f} s"
    if "spans" in known and len(row.prompt.spans) > known["spans"]:
        yield (
            "prompt",
            (f"{len(row.prompt.spans)} speech spans, the model was trained on at most {known['spans']}"),
        )


def _span(lengths: list[int]) -> str:
    return f"{lengths[0]}" if lengths[0] == lengths[1] else f"{lengths[0]} to {lengths[1]}"
