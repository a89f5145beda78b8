"""Rows that only sample: each direction of guidance by itself, on one trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.studies.claims.registry import GIVEN, Claim, Contrast
from pretrain.flow.guidance import NO_GUIDANCE, GuidanceScales

NONE = "no guidance"


@dataclass(frozen=True)
class Direction:
    """Fields of `GuidanceScales` that it sets, what it is said to move, and by which metric that shows."""

    fields: tuple[str, ...]
    moves: str
    measure: str
    decides: float  # the release's scale of the sound (nava.md, section 4)


DIRECTIONS: Mapping[str, Direction] = {
    "text": Direction(("text_video", "text_audio"), "the words", "wer_pocketsphinx_judge", 2.0),
    "align": Direction(("align_video", "align_audio"), "the sync", "sync_judge", 2.0),
    "timbre": Direction(("timbre_audio",), "the voice", "sim_resemblyzer", 3.0),
}


def sampling_name(direction: str, scale: float) -> str:
    return f"{direction} {scale:g}"


def guidance_rows(scales: Sequence[float]) -> dict[str, Claim]:
    """A claim for each direction, at the scale that decides and at each of `scales` against no guidance."""
    return {f"guidance_{name}": _row(name, found, scales) for name, found in DIRECTIONS.items()}


def _row(name: str, direction: Direction, scales: Sequence[float]) -> Claim:
    ordered = [direction.decides, *(scale for scale in sorted(scales) if scale != direction.decides)]
    samplings: dict[str, GuidanceScales | None] = {NONE: NO_GUIDANCE}
    for scale in ordered:
        samplings[sampling_name(name, scale)] = replace(NO_GUIDANCE, **dict.fromkeys(direction.fields, scale))
    where = " and ".join(field.removeprefix(f"{name}_") for field in direction.fields)
    return Claim(
        says=f"Guidance by {'alignment' if name == 'align' else name} moves {direction.moves}",
        where="condition-factorised guidance (arXiv 2605.30073)",
        asked=f"one trained model, this direction alone ({where}) at {direction.decides:g} against no "
        "guidance, the same prompts and noise",
        measure=direction.measure,
        contrasts=tuple(
            Contrast(f"{scale:g} against 0", (GIVEN, sampling_name(name, scale)), (GIVEN, NONE))
            for scale in ordered
        ),
        samplings=samplings,
    )
