"""Votes of simulated raters before and after alignment, in the file format and statistics of human votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.before_after import AFTER, BEFORE, paired
from experiments.scoring.rows import ScoredRow, column
from finetune.gsb.pairs import ClipRef
from finetune.gsb.simulated_pairs import votes_before_after
from finetune.gsb.simulated_raters import SimulatedRatersConfig, check_apart
from finetune.gsb.summary import summarise
from finetune.gsb.votes import AXES, read_votes
from pretrain.jsonl import dump

KEPT = ("good", "same", "bad", "gsb", "gsb_low", "gsb_high", "gsb_interval", "sign_p", "raters", "prompts")


def simulated_gsb(
    config: SimulatedRatersConfig,
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
    votes_out: Path,
    rewarded: Mapping[str, float],
) -> dict[str, Any]:
    """Write the votes; returns GSB per axis, raters, votes and warnings.

    Keys: `{simulated: true, raters, votes, warnings, gsb: {axis: {good, same, bad, gsb, gsb_low, gsb_high,
    sign_p}}, gsb_all_raters}`; the last also counts raters that the fixed rule drops. Good is for the aligned
    model. If every vote is a tie, `gsb` is empty and `reason` is set. Raises ValueError if the simulated
    raters would use something of `rewarded` (the rubric's weights), or a judge did not run.
    """
    check_apart(config, rewarded)
    before, after = paired(before, after)
    scores = {**_scores(config, BEFORE, before), **_scores(config, AFTER, after)}
    dump(votes_out, votes_before_after(config, _clips(AFTER, after), _clips(BEFORE, before), scores))
    votes = read_votes(votes_out, AFTER)
    try:
        found, of_all = summarise(votes), summarise(votes, keep_all_raters=True)
    except ValueError as error:  # all ties: no preference, which is a valid result
        return {"simulated": True, "gsb": {}, "reason": str(error)}
    rest = {"raters": config.raters, "votes": found["votes"], "warnings": found["warnings"]}
    return {"simulated": True, **rest, "gsb": _by_axis(found), "gsb_all_raters": _by_axis(of_all)}


def _by_axis(found: Mapping[str, Any]) -> dict[str, Any]:
    by_axis = found.get("axes", {found["axis"]: found})
    return {
        axis: {key: by_axis[axis]["pairs"][BEFORE][key] for key in KEPT} for axis in AXES if axis in by_axis
    }


def _clips(model: str, rows: Sequence[ScoredRow]) -> list[ClipRef]:
    return [ClipRef(row["data_id"], model, row["data_id"], row["prompt"], None) for row in rows]


def _scores(
    config: SimulatedRatersConfig, model: str, rows: Sequence[ScoredRow]
) -> dict[tuple[str, str], dict[str, float]]:
    """Scores by judge; one that did not run is left out, and the simulated raters report it."""
    columns = {
        feature.name: column(rows, *feature.name.split(".", 1))
        for feature in config.features
        if all(feature.name.partition(".")[0] in row["scores"] for row in rows)
    }
    return {
        (model, row["data_id"]): {name: values[place] for name, values in columns.items()}
        for place, row in enumerate(rows)
    }
