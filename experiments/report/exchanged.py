"""Dialogues made twice, the second time with the references exchanged: did the voices change places?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.scoring.rows import ScoredRow, said_by, score_in
from experiments.scoring.sets import DIALOGUE_SET, EXCHANGED_SET, VOICES
from experiments.scoring.statistics import Interval, bootstrap_mean

ScoredGroups = Mapping[tuple[str, str], Sequence[ScoredRow]]  # by prompt set and source


def voices_exchanged(groups: ScoredGroups, seed: int = 0) -> Interval | None:
    """Share of dialogues in which both clips have the nearest voice right in every turn; None without pairs.

    A pair of which a clip was not scored takes no part. The interval is over what the dialogues say, and by
    whom, within 0 and 1.
    """
    once = {row["data_id"]: row for row in groups.get((DIALOGUE_SET, "generated"), ())}
    again = groups.get((EXCHANGED_SET, "generated"), ())
    pairs = [(once[row["data_id"]], row) for row in again if row["data_id"] in once]
    if not pairs:
        return None
    said = [said_by(row) for row, _ in pairs]
    found = bootstrap_mean([_all_right(*pair) for pair in pairs], seed, clusters=said)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _all_right(*rows: ScoredRow) -> float:
    accuracies = [score_in(row, VOICES).value for row in rows]
    return math.nan if any(map(math.isnan, accuracies)) else float(min(accuracies) == 1)
