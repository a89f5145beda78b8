"""What a person asks for on the page: checked by the service's own rules before anything is sent."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.web.services import ModelSide, PageServices
from orchestration.generation_service.fields import FIRST_FRAME, read_fields, references_of
from orchestration.generation_service.offer import Offer
from orchestration.service.limits import Refusal
from pretrain.prompt.rows import MAX_SEED

MOST_SEEDS = 8
MOST_VOICES = 4
MOST_TEXT_BYTES = 1 << 20
_SEEDS = re.compile(r"(\d{1,19})(?:\s*-\s*(\d{1,19}))?")
GUIDANCE = {
    "text_video": "How closely the pictures follow the prompt; too much makes them hard and over-sharp.",
    "text_audio": "How clearly the sound says what the prompt says; too much makes it harsh.",
    "align_video": "How closely lips and movement follow the sound.",
    "align_audio": "How closely the sound follows the pictures.",
    "timbre_video": "How much the reference voice shapes the pictures; usually 0.",
    "timbre_audio": "How much the voice sounds like its reference; nothing without one.",
}


@dataclass(frozen=True, kw_only=True)
class PageForm:
    """The fields of the page; those that are None or empty are the service's to choose."""

    prompt: str
    negative_prompt: str = ""
    seeds: tuple[int, ...] = (0,)
    seconds: float | None = None
    size: str = ""
    steps: int | None = None
    guidance: Mapping[str, float] = field(default_factory=dict)
    task: str = ""
    fit: str = ""
    references: tuple[Path | None, ...] = ()  # the voice of each speech span, in order
    first_frame: Path | None = None
    mouth_boxes: tuple[tuple[int, ...], ...] = ()  # for scores of sync, not for the service

    def fields(self, side: ModelSide, seed: int) -> dict[str, Any]:
        """Of the service's request, without its files."""
        given = {
            "prompt": self.prompt,
            "model": side.model,
            "seed": seed,
            "negative_prompt": self.negative_prompt.strip(),
            "seconds": self.seconds,
            "size": self.size.strip().lower(),
            "steps": self.steps,
            "guidance": dict(self.guidance),
            "task": self.task,
            "fit": self.fit,
            "adapters": [f"{name}={scale!r}" for name, scale in side.adapters.items()],
        }
        return {name: value for name, value in given.items() if value not in (None, "", {}, [])}


def seeds_of(text: str) -> tuple[int, ...]:
    """Of `7`, `1 2 3`, `1, 2` or `1-4`; one is drawn where there is none. Raises ValueError."""
    found: list[int] = []
    for entry in re.sub(r"\s*-\s*", "-", text.replace(",", " ")).split():
        if not (match := _SEEDS.fullmatch(entry)):
            raise ValueError(f"seeds: {entry[:40]!r}; give whole numbers such as 1 2 3, or 1-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_SEED:
            raise ValueError(f"seeds: {entry}; from a smaller to a larger number, at most {MAX_SEED}")
        found += range(first, min(last, first + MOST_SEEDS) + 1)
        if len(found) > MOST_SEEDS:
            raise ValueError(f"seeds: more than {MOST_SEEDS}; the page shows at most that many at once")
    if len(set(found)) < len(found):
        raise ValueError("seeds: one is there twice; the same seed makes the same clip")
    return tuple(found) or (secrets.randbelow(2**32),)


def mouth_boxes_of(text: str) -> tuple[tuple[int, ...], ...]:
    """Of `x0,y0,x1,y1; ...`, one for each face. Raises ValueError."""
    boxes = []
    for entry in filter(str.strip, text.split(";")):
        numbers = entry.replace(",", " ").split()
        if len(numbers) != 4 or not all(number.isdecimal() and len(number) < 6 for number in numbers):
            raise ValueError(
                f"mouth boxes: {entry.strip()[:40]!r}; give x0,y0,x1,y1 in pixels, `;` between faces"
            )
        x0, y0, x1, y1 = map(int, numbers)
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"mouth boxes: {entry.strip()}; x1 and y1 are the lower right corner")
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def warnings_of(form: PageForm, side: ModelSide, offer: Offer) -> Sequence[str]:
    """Where the clip is unlike what the model was trained on. Raises ValueError in one line, by the service's
    own rules, for what it would refuse; what only its model can tell is left to it."""
    uploads = {f"reference_{i}": path for i, path in enumerate(form.references) if path is not None}
    uploads |= {FIRST_FRAME: form.first_frame} if form.first_frame else {}
    try:
        body = json.dumps(form.fields(side, form.seeds[0])).encode()
        request, files = read_fields(body, uploads, MOST_TEXT_BYTES)
        return offer.wanted(request, FIRST_FRAME in files, set(references_of(files))).warnings
    except Refusal as refusal:
        raise ValueError(refusal.reason) from None


def check_sides(form: PageForm, sides: Sequence[ModelSide], services: PageServices) -> list[str]:
    """Warnings of all sides, each once. Raises ValueError or ConnectionError before anything is sent."""
    if len({side.label for side in sides}) < len(sides):
        raise ValueError("A and B are the same model with the same adapter; choose another one for B")
    told: dict[str, None] = {}
    for side in sides:
        try:
            found = warnings_of(form, side, services.offer(side.service))
        except ValueError as error:
            raise ValueError(f"{side.label}: {error}" if len(sides) > 1 else str(error)) from None
        told |= dict.fromkeys(f"{side.label}: {line}" if len(sides) > 1 else line for line in found)
    return list(told)
