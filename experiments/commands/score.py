"""`nava score`: clips on disk to scores."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.commands.options import JsonFlag
from experiments.errors import CHECK_FAILED

if TYPE_CHECKING:
    from experiments.runs.tracker import SpoolTracker
    from experiments.scoring.clips import ClipSource
    from experiments.scoring.conditions import Condition
    from experiments.scoring.score_files import ScoreSettings
    from experiments.scoring.store import StoredRow

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
FailIf = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="fail-if",
        metavar="METRIC<NUMBER",
        help="exit with 1 where this holds of the mean that the table shows (<, <=, >, >=; a reward, "
        "reward.part or total); may be given again",
    ),
]
MinScored = Annotated[
    float | None,
    tyro.conf.arg(metavar="SHARE", help="exit with 1 where a reward, or the total, has fewer of the clips"),
]
MaxUnreadable = Annotated[
    float,
    tyro.conf.arg(metavar="SHARE", help="end the run where more of the clips cannot be read (5 at least)"),
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
    max_unreadable: MaxUnreadable = 0.5,
    fail_if: FailIf = (),
    min_scored: MinScored = None,
    as_json: JsonFlag = False,
) -> int:
    """Score a folder of media, an index of `nava generate`, a training manifest, or a prompts JSONL with a
    video per row.

    A row per clip is written to --out as it is scored; an interrupted run resumes, unchanged clips are kept.
    A clip, reference or first frame that cannot be read, and a clip that a reward raises on, is a row with
    that reason; rows that may do better another time (input or output errors, a reward that raised) are
    scored again. What else lies in a folder is counted as left out.

    --rubric is a YAML file that adds a total, the sum of weight x normalised value; its rewards are scored
    where --rewards names none. The file is that of `nava align` and `nava serve rewards`:
      items:
        snr_estimate_db: {weight: 1.0, normalise: batch}
        wer_pocketsphinx: {weight: -1.0, normalise: batch, floor: 0.5}
      guardrails: {min_loudness_dbfs: -40}
      options: {wer_pocketsphinx: {vocabulary: [one, two]}}
      weight: negative for a reward that is better when lower (its sign is checked); 0 = measured only
      normalise: group (default) = z-score among the clips of one prompt, needs two or more of each;
        batch = among all clips given; running = as batch; none = the raw value, the only one whose totals
        can be compared between two sets. A total that cannot be formed is empty, with the reason.
      floor: the worst raw value allowed, a minimum where the weight is positive, a maximum where it is
        negative; a clip beyond it gets the lowest total of its prompt's clips, of all where it is its
        prompt's only one, or none with below: nan.

    A reward of your own is asked for as package.module:Class, here, in the rubric, in --set and --fail-if;
    its scores are called by the `name` of the class.

    Exit code: 0; 1 where --fail-if holds, --min-scored or --max-unreadable is not kept, or no clip has a
    score; 2 for a wrong input or a reward that fails on clip after clip.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    from experiments.runs.inputs import digests_of_inputs
    from experiments.scoring.clips import ClipSource, read_source
    from experiments.scoring.conditions import check_share, fail_conditions
    from experiments.scoring.config import settings_from

    check_share(min_scored)
    source = read_source(clips)
    files = source.clips[:limit]
    chosen = settings_from(rewards, rubric, settings, files, batch, max_unreadable)
    conditions = fail_conditions(fail_if, chosen.rewards, chosen.rubric)
    inputs, start_s = digests_of_inputs(clips, rubric, *_paths_in(chosen.options)), time.monotonic()
    code, rows = _score(ClipSource(files, source.left_out), chosen, out, conditions, min_scored, as_json)
    _record(chosen, limit, inputs, out, time.monotonic() - start_s, rows)
    return code


def _record(
    settings: ScoreSettings,
    limit: int | None,
    inputs: Mapping[str, str],
    out: Path,
    seconds: float,
    rows: Sequence[StoredRow],
) -> None:
    """The scoring as a run, by which lineage finds what the scores were made from, with means and a table."""
    from experiments.layout import Layout
    from experiments.recipes.load import as_plain
    from experiments.runs.run import record_run
    from experiments.scoring.clip_table import log_clip_table
    from experiments.scoring.summary import means, summarise

    def log(tracker: SpoolTracker) -> None:
        tracker.log_metrics(means(summarise(rows)), step=0)
        log_clip_table(tracker, rows)

    described = {"rewards": list(settings.rewards), "options": as_plain(settings.options), "limit": limit}
    tags = {"nava.output": str(out)}
    logged = log if rows else None
    record_run("score", described, tags, Layout(), Path(), inputs, [out], seconds, False, logged)


def _score(
    source: ClipSource,
    settings: ScoreSettings,
    out: Path,
    conditions: Sequence[Condition],
    min_scored: float | None,
    as_json: bool,
) -> tuple[int, Sequence[StoredRow]]:
    """Scores, prints, and answers the exit code and the rows."""
    from experiments.scoring.faults import TooManyUnreadable
    from experiments.scoring.score_files import score_files
    from experiments.scoring.verdict import told, verdict

    try:
        rows = score_files(source.clips, settings, out)
    except TooManyUnreadable as error:
        print(f"nava: {error}", file=sys.stderr)
        return CHECK_FAILED, ()
    found = verdict(rows, source.left_out, conditions, min_scored, settings.max_unreadable)
    if as_json:
        print(json.dumps(found.summary, indent=1, allow_nan=False))
    else:
        told(found, out)
    for line in found.wrong:
        print(f"nava: {line}", file=sys.stderr)
    return CHECK_FAILED if found.wrong else 0, rows


def _paths_in(options: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders that options of rewards name, such as the model of a sync network."""
    for value in options.values():
        if isinstance(value, Mapping):
            yield from _paths_in(value)
        elif isinstance(value, (str, Path)) and value and Path(value).exists():
            yield Path(value)
