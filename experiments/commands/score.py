"""`nava score`: clips on disk to scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from experiments.commands.options import JsonFlag

RewardSettings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="set",
        metavar="REWARD.OPTION=VALUE",
        help="set an option of a reward; may be given again (wer_whisper.language=zh; docs/rewards.md says "
        "which scoring is for which language)",
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
    from experiments.scoring.clips import list_clips
    from experiments.scoring.config import settings_from
    from experiments.scoring.score_files import score_files
    from experiments.scoring.summary import show, summarise

    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    files = list_clips(clips)[:limit]
    rows = score_files(files, settings_from(rewards, rubric, settings, files, batch), out)
    summary = summarise(rows)
    if as_json:
        print(json.dumps(summary, indent=1, allow_nan=False))
    else:
        show(summary)
        print(f"scores  {out}")
