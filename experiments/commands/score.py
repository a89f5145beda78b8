"""`nava score`: clips on disk to scores."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.commands.options import JsonFlag

RewardSettings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="set", metavar="REWARD.OPTION=VALUE", help="set an option of a reward; may be given again"
    ),
]
RewardNames = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="NAME", help="names of the catalog, or package.module:Class")
]


def score(
    clips: Annotated[Path, tyro.conf.Positional],
    /,
    rewards: RewardNames = (),
    out: Path = Path("scores.jsonl"),
    rubric: Path | None = None,
    settings: RewardSettings = (),
    limit: int | None = None,
    batch: int = 64,
    as_json: JsonFlag = False,
) -> None:
    """Score a folder of mp4 and wav, an index of `nava generate`, a training manifest, or a prompts JSONL
    with a video per row.

    A row per clip is written to --out as it is scored; an interrupted run resumes, unchanged clips are kept.
    --rubric is a YAML file (items: {reward: {weight, normalise, floor}}, guardrails,
    options) that adds a total; its rewards are scored where --rewards names none. A reward that is better
    when lower takes a negative weight.
    """
    from experiments.layout import Layout
    from experiments.recipes.load import as_plain
    from experiments.runs.inputs import digests_of_inputs
    from experiments.runs.run import record_run
    from experiments.scoring.clips import list_clips
    from experiments.scoring.config import settings_from
    from experiments.scoring.score_files import score_files
    from experiments.scoring.summary import show, summarise

    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    files, start_s = list_clips(clips)[:limit], time.monotonic()
    chosen = settings_from(rewards, rubric, settings, files, batch)
    inputs = digests_of_inputs(clips, rubric, *_paths_in(chosen.options))
    rows = score_files(files, chosen, out)
    described = {"rewards": list(chosen.rewards), "options": as_plain(chosen.options), "limit": limit}
    tags, seconds = {"nava.output": str(out)}, time.monotonic() - start_s
    record_run("score", described, tags, Layout(), Path(), inputs, [out], seconds)
    summary = summarise(rows)
    if as_json:
        print(json.dumps(summary, indent=1, allow_nan=False))
    else:
        show(summary)
        print(f"scores  {out}")


def _paths_in(options: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders that options of rewards name, such as the model of a sync network."""
    for value in options.values():
        if isinstance(value, Mapping):
            yield from _paths_in(value)
        elif isinstance(value, (str, Path)) and value and Path(value).exists():
            yield Path(value)
