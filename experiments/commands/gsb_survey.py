"""The votes of a survey as files, in a tracked run: what leads from an aligned model back to the survey."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.types import Tracker


def exported(
    place: str,
    name: str | None,
    votes: Path,
    pairs: Path | None,
    write_pairs: Callable[[], Any],
    track: bool,
    clips: Sequence[Path] = (),
) -> tuple[str, int]:
    """Writes the votes, then calls `write_pairs`; returns (name of the survey, number of votes).

    The run in MLflow has both files as what it made, the page of results as artifact, and names the survey
    and the digests of the clips that were compared, but no person. clips: where they lie, whose makers are
    the run's parents.
    """
    from experiments.layout import Layout
    from experiments.runs.inputs import SHA256, digests_of_inputs
    from experiments.runs.run import single_run
    from experiments.voting.export import export_votes, read_survey, results_page
    from pretrain.owned import replaced_file

    survey, found = read_survey(place, name)
    if not track:
        rows = export_votes(place, survey.name, votes)
        write_pairs()
        return survey.name, rows
    made = [path for path in (votes, pairs) if path]
    folder = Path(os.path.commonpath([path.parent.resolve() for path in made]))
    tags = {"nava.survey": survey.name, "nava.output": os.path.relpath(folder)}
    tags |= {
        "nava.survey_inputs": f"{SHA256}{survey.inputs}",
        "nava.simulated": str(found["simulated"]).lower(),
    }
    files = [path.resolve() for path in made]
    config = {"survey": {"name": survey.name}, **survey.config.as_json()}
    read = digests_of_inputs(*clips)
    with single_run("survey", config, tags, Layout(), Path(), read, made=files_of(files)) as tracker:
        rows = export_votes(place, survey.name, votes)
        write_pairs()
        page = votes.with_suffix(".html")
        with replaced_file(page) as path:
            path.write_text(results_page(found), encoding="utf-8")
        _log(tracker, found, [*made, page])
    return survey.name, rows


def files_of(paths: list[Path]) -> list[Path]:
    """Relative to here, as runs name what they made."""
    return [Path(os.path.relpath(path)) for path in paths]


def _log(tracker: Tracker, found: dict[str, Any], files: list[Path]) -> None:
    for path in files:
        tracker.log_artifact(str(path))
    numbers: dict[str, float] = {"ballots": found["ballots"], "raters": len(found["raters"])}
    statistics = found["statistics"] or {"axis": "", "pairs": {}}
    for axis, part in statistics.get("axes", {statistics["axis"]: statistics}).items():
        for baseline, pair in part["pairs"].items():
            numbers[f"gsb_{axis}_against_{baseline}"] = pair["gsb"]
    tracker.log_metrics(numbers, step=0)
