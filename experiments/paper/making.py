"""Makes the clips of a benchmark's cases, clip by clip and resumable, and keeps why a case has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.paper.cases import CaseCheck, CasePrompt
from experiments.paper.layouts import BenchItem, answered
from pretrain.files import read_json, replacing, write_json
from pretrain.generate import OnBegin, Spread
from pretrain.generation.clip_folder import INDEX
from pretrain.generation.order import ClipDone, ClipOrder
from pretrain.generation.request import request_id
from pretrain.jsonl import scan

PROMPTS, CASES, FAILED = "case_prompts.jsonl", "cases.jsonl", "failed_cases.json"
MakeClips = Callable[[Path, Callable[[Spread], Spread]], None]


@dataclass
class FailedClips:
    """Clips that were tried and could not be made, kept so that the same request does not try them again.

    ready: called before the first clip is made, and raises where that would be in vain.
    """

    path: Path
    ready: Callable[[], None] = lambda: None
    reasons: dict[str, str] = field(default_factory=dict)

    def watching(self, spread: Spread) -> Spread:
        """The same, with every failure noted; nothing is made where all that is missing has failed before."""

        def run(order: ClipOrder, begin: OnBegin) -> Iterator[ClipDone]:
            asked = request_id(order.request)
            known = self._kept(asked)
            if known and order.missing <= known.keys():
                self.reasons |= known
                yield from (ClipDone(name, {}, known[name]) for name in sorted(order.missing))
                return
            self.ready()
            for clip in spread.run(order, begin):
                if clip.reason:
                    self.reasons[clip.name] = clip.reason
                    write_json(self.path, {"request": asked, "reasons": self.reasons})
                yield clip

        return replace(spread, run=run)

    def _kept(self, request: str) -> dict[str, str]:
        if not self.path.is_file():
            return {}
        kept = read_json(self.path, "remove it")
        return dict(kept["reasons"]) if kept.get("request") == request else {}


def made(
    items: Sequence[BenchItem],
    prompt: CasePrompt,
    check: CaseCheck,
    make: MakeClips,
    clips: Path,
    to: Path,
    ready: Callable[[], None] = lambda: None,
) -> list[BenchItem]:
    """The cases with their clips in `clips`, or why they have none.

    `to` gets case_prompts.jsonl of what can be made, and cases.jsonl: `{case, data_id, reason}` of all. make:
    `(prompts, spread to spread)` makes the clips of these prompts into `clips`. ready: as of `FailedClips`.
    Raises ValueError in one line
    where no case could be made, and as `make` for what is wrong with all of them, such as too little memory.
    """
    rows, reasons = check.sorted_out(items, prompt)
    failed = FailedClips(to / FAILED, ready)
    if rows:
        _write_rows(to / PROMPTS, rows)
        try:
            make(to / PROMPTS, failed.watching)
        except ValueError:
            there = _indexed(clips)
            if not failed.reasons or any(
                row["data_id"] not in there and row["data_id"] not in failed.reasons for row in rows
            ):
                raise
    found = answered(items, clips, {**reasons, **failed.reasons})
    _write_rows(
        to / CASES, [{"case": item.key, "data_id": item.name, "reason": item.reason} for item in found]
    )
    if not any(item.sound or item.video for item in found):
        raise ValueError(
            f"{to / CASES}: none of {len(found)} cases could be made; {found[0].key}: {found[0].reason}"
        )
    return found


def _indexed(clips: Path) -> set[str]:
    if not (clips / INDEX).is_file():
        return set()
    return {row["data_id"] for _, row in scan(clips / INDEX) if isinstance(row, dict)}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
