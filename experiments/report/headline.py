"""The few numbers and curves by which runs of the pipeline are compared with `dvc metrics|plots diff`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.report.gates import GateResult, gate_name
from experiments.report.pictures import read_losses, read_rows

MOST_NUMBERS = 20  # a row of `dvc exp show` fits a terminal
HELD_OUT_TOTAL = "held_out_total"


def headline(results: Sequence[GateResult]) -> dict[str, float | None]:
    """Number of each of the recipe's gates by a name of its own, and how many gates passed; None = not
    measured. At most MOST_NUMBERS, the first ones."""
    numbers: dict[str, float | None] = {"gates_passed": sum(result.status == "passed" for result in results)}
    for result in results:
        numbers.setdefault(gate_name(result), result.mean)
    return dict(list(numbers.items())[:MOST_NUMBERS])


def loss_table(stages: Mapping[str, Path]) -> str:
    """CSV of step (all stages in a row), video, audio: training losses, mean squared errors of velocity.

    `stages`: folders with a metrics.jsonl each. A modality that a step does not train is an empty field.
    """
    series, _ = read_losses(stages)
    video, audio = (dict(zip(*series[modality, "train"], strict=True)) for modality in ("video", "audio"))
    steps = sorted(video.keys() | audio.keys())
    return _csv(("step", "video", "audio"), [(step, video.get(step), audio.get(step)) for step in steps])


def reward_table(align_log: Path) -> str:
    """CSV of round and held_out_total, the held-out prompts' mean rubric total beside that of the start."""
    rows = [row for row in read_rows(align_log) if HELD_OUT_TOTAL in row]
    return _csv(("round", HELD_OUT_TOTAL), [(row["step"], row[HELD_OUT_TOTAL]) for row in rows])


def _csv(header: Sequence[str], rows: Sequence[Sequence[float | None]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
