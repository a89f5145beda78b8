"""Best of n: several clips of each prompt, of which a rubric chooses one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.scoring.clips import index_clips
from experiments.scoring.config import settings_from
from experiments.scoring.score_files import ScoreSettings, score_files
from experiments.scoring.store import StoredRow
from pretrain.files import path_in_row
from pretrain.generation.clip_folder import INDEX, ClipFolder, files_of
from pretrain.generation.config import GenerateConfig
from pretrain.jsonl import scan
from pretrain.owned import read_marker
from pretrain.storage import writing

MOST = 1000


def with_candidates(config: GenerateConfig, count: int) -> GenerateConfig:
    """The config that makes `count` clips of each prompt, from its seed on. Raises ValueError."""
    if not 2 <= count <= MOST:
        raise ValueError(f"--candidates: expected 2 to {MOST}, got {count}")
    if config.seeds:
        raise ValueError("--candidates takes seeds of its own, from --seed on; leave --seeds out")
    return replace(config, seeds=tuple(range(config.seed, config.seed + count)))


def beside(out: Path, what: str) -> Path:
    """Where candidates and their scores lie: OUT-candidates, OUT-candidates.jsonl."""
    return out.with_name(f"{out.name}-{what}")


@dataclass(frozen=True)
class BestOf:
    """Of one prompt: its best candidate's index row, total, and how many candidates have one."""

    prompt_id: str
    row: Mapping[str, Any]
    total: float  # NaN where no candidate could be scored
    scored: int
    reason: str


def check_choice(out: Path, rubric: Path, count: int) -> None:
    """Raises in one line, before clips are made, for a rubric file that is none and for an `out` that
    `choose` would not fill: another command's, or with files of somebody."""
    settings = settings_from((), rubric, (), ())
    ClipFolder.of(out, _request(beside(out, "candidates"), settings, count), (), aside=True)


def choose(candidates: Path, rubric: Path, out: Path) -> list[BestOf]:
    """Score the candidates, and fill `out` with the best of each prompt under the prompt's name.

    The scores of all stay in OUT-candidates.jsonl, so that a killed call goes on. A total compares the
    candidates of one prompt; ties go to the lower seed, and a prompt of which none could be scored gets its
    first candidate. Raises as `score_files`.
    """
    rows = [row for _, row in scan(candidates / INDEX) if isinstance(row, dict)]
    clips = [
        replace(clip, group=row["prompt_id"])
        for clip, row in zip(index_clips(candidates / INDEX), rows, strict=True)
    ]
    settings = settings_from((), rubric, (), clips)
    scored = score_files(clips, settings, beside(out, "candidates.jsonl"))
    choices = chosen(rows, scored)
    _fill(candidates, settings, choices, rows, out)
    return choices


def chosen(rows: Sequence[Mapping[str, Any]], scored: Sequence[StoredRow]) -> list[BestOf]:
    """The best of each prompt, in the order of the prompts; rows and scores in the same order."""
    groups: dict[str, list[tuple[float, Mapping[str, Any], str]]] = {}
    for row, score in zip(rows, scored, strict=True):
        total = score["total"]
        value = math.nan if total["value"] is None else float(total["value"])
        groups.setdefault(row["prompt_id"], []).append((value, row, total["reason"]))
    choices = []
    for prompt_id, some in groups.items():
        known = [one for one in some if not math.isnan(one[0])]
        total, row, reason = max(known, key=lambda one: one[0]) if known else some[0]
        choices.append(BestOf(prompt_id, row, total, len(known), reason))
    return choices


def _fill(
    candidates: Path,
    settings: ScoreSettings,
    choices: Sequence[BestOf],
    rows: Sequence[Mapping[str, Any]],
    out: Path,
) -> None:
    count = len({row["seed"] for row in rows})
    request = _request(candidates, settings, count)
    folder = ClipFolder.of(out, request, [choice.prompt_id for choice in choices], aside=True)
    if folder.state == "finished":
        return
    folder.begin(0)
    there = folder.done()
    for choice in choices:
        if choice.prompt_id not in there:
            _take(candidates, choice, folder, count)
    folder.finish()


def _request(candidates: Path, settings: ScoreSettings, count: int) -> dict[str, Any]:
    """What a folder of choices is made with, by the candidates that are there."""
    made_with = (read_marker(candidates) or {}).get("made_with", {})
    weighed = json.dumps([settings.described(), repr(settings.rubric)], sort_keys=True, default=str)
    rubric = hashlib.sha256(weighed.encode()).hexdigest()[:32]
    return {**made_with, "chosen": {"candidates": count, "rubric": rubric}}


def _take(candidates: Path, choice: BestOf, folder: ClipFolder, count: int) -> None:
    """Link the files of a choice, or copy them, under the prompt's name."""
    row = {**choice.row, "data_id": choice.prompt_id}
    for key in ("reference_paths", "image_path"):
        if key in row:
            row[key] = _moved(row[key], candidates, folder.place)
    for key in ("video", "audio", "latents"):
        if name := choice.row.get(key):
            row[key] = f"{choice.prompt_id}{Path(name).suffix}"
            with writing(folder.place / row[key]) as path:
                _link(candidates / name, path)
    row |= {"candidates": count, "scored": choice.scored}
    row |= {} if math.isnan(choice.total) else {"total": choice.total}
    folder.add(row, files_of(row))


def _moved(names: Any, old: Path, new: Path) -> Any:
    """Paths that start at one folder, of a row that goes into another."""
    if isinstance(names, list):
        return [_moved(name, old, new) for name in names]
    if not names.startswith("./"):
        return names
    return path_in_row(Path(os.path.relpath(Path(os.path.realpath(old)) / names)), new)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, path)


def told(choices: Sequence[BestOf], count: int) -> list[str]:
    """What to say of it, in lines."""
    unscored = [choice for choice in choices if not choice.scored]
    lines = [f"best of {count} candidates of {len(choices)} prompts; their scores compare by its own rubric"]
    if unscored:
        first = unscored[0]
        lines.append(
            f"no candidate of {len(unscored)} prompts could be scored, the first was taken; "
            f"{first.prompt_id}: {first.reason}"
        )
    return lines
