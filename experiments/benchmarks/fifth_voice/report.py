"""The table of a setting: before, after, and the paired difference, over seeds of training and clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.fifth_voice.measure import (
    ScoredClips,
    Trained,
    VoiceScores,
    clips_of,
    old_prompts,
    real_clips,
    through_codec,
)
from experiments.benchmarks.fifth_voice.world import PROMPTS_FOLDER, words
from experiments.recipes.load import load_recipe
from experiments.scoring.statistics import (
    Draws,
    Interval,
    Table,
    difference_over_seeds,
    mean_over_seeds,
    paired,
)
from finetune.adapters import check_adapter
from pretrain.files import write_json
from pretrain.statistics import NUM_RESAMPLES


@dataclass(frozen=True)
class VoiceRow:
    """A metric of a set of clips: by the base, over the seeds of fine-tuning, and by how much it moved."""

    metric: str
    before: Interval
    after: Interval | None = None
    moved: Interval | None = None
    seeds: tuple[float, ...] = ()  # the metric of each seed

    def __str__(self) -> str:
        cells = [f"{self.metric:34}", *map(_cell, (self.before, self.after, self.moved))]
        return "  ".join([*cells, " ".join(f"{value:.3f}" for value in self.seeds)]).rstrip()

    def as_json(self) -> dict[str, Any]:
        intervals = {"before": self.before, "after": self.after, "moved": self.moved}
        known = {name: interval.as_json() for name, interval in intervals.items() if interval is not None}
        return known | ({"seeds": [round(value, 6) for value in self.seeds]} if self.seeds else {})


def compare(
    world: Path, demo: Path, adapters: Sequence[Path], prompts: str, limit: int, to: Path | None
) -> None:
    """Print each metric of the new and of the old voices before and after, and of the new voice's real sound.

    Raises ValueError or OSError.
    """
    trained = Trained(demo / "pretrain" / "stage3" / "model", demo / "codec", demo / "corpus")
    for adapter in adapters:  # before anything is made
        check_adapter(adapter, trained.model)
    params = Path("params.yaml")
    config = load_recipe("mini", params if params.is_file() else None).generate
    scores, tables = VoiceScores(), {}
    real = real_clips(world, words()[1][prompts])
    for name, clips in {"real": real, "through the codec": through_codec(real, trained.codec)}.items():
        tables[f"the new voice, {name}"] = rows_of(scores.of(clips), [])
    new, old = world / PROMPTS_FOLDER / f"{prompts}.jsonl", old_prompts(trained.corpus, world, prompts)
    for name, path in {"the new voice, words it was not heard with": new, "the old voices": old}.items():
        made = [
            scores.of(clips_of(trained, path, adapter, world / "generated", config)[:limit])
            for adapter in (None, *adapters)
        ]
        tables[name] = rows_of(made[0], made[1:])
    print(f"{'':34}  {'before':24}  {'after':24}  {'difference':24}  seeds")
    for name, rows in tables.items():
        print(f"{name} ({rows[0].before.n} clips)", *rows, sep="\n  ")
    if to is not None:
        write_json(to, {name: {row.metric: row.as_json() for row in rows} for name, rows in tables.items()})


def rows_of(before: Mapping[str, ScoredClips], after: Sequence[Mapping[str, ScoredClips]]) -> list[VoiceRow]:
    """A row for each metric. Seeds and clips are resampled, the same clips in all seeds."""
    rows = []
    for metric, terms in before.items():
        base = Table.of([terms])
        one = mean_over_seeds(base, Draws.crossed(1, base.below.shape[1], NUM_RESAMPLES))
        if not after:
            rows.append(VoiceRow(metric, one))
            continue
        first, then = paired(base, Table.of([seed[metric] for seed in after]))
        draws = Draws.crossed(len(after), base.below.shape[1], NUM_RESAMPLES)
        moved = difference_over_seeds(then, first, draws)
        rows.append(VoiceRow(metric, one, mean_over_seeds(then, draws), moved, tuple(then.per_seed)))
    return rows


def _cell(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.mean):
        return " " * 24 if interval is None else f"{'not measured':24}"
    return f"{f'{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]':24}"
