"""The closing page of a finished alignment folder: its inputs from resolved.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.report.closing import AFTER, BEFORE, PAGE, RESULT, ClosingInputs
from experiments.report.gates import Reports
from experiments.report.run_results import RunResults, example_clips, results_of
from finetune.align_run import AlignRun
from finetune.prompts import read_prompt_set
from pretrain.files import read_json
from pretrain.generation.config import GenerateConfig
from pretrain.jsonl import dump, scan
from pretrain.launch.torchrun import RESOLVED
from rewards.catalog import metrics_of
from rewards.guardrails import GuardrailLimits
from rewards.options import fill

PROMPTS = "prompts.jsonl"
WEIGHTS_CHOSEN = (
    "Their rewards also decided which round's weights were kept, which flatters rewards a little; "
    "judges had no part in it."
)


@dataclass(frozen=True, kw_only=True)
class ClosingOptions:
    """What a person may say about the page beside the run. `prompts` None: those that the run held out."""

    prompts: Path | None = None
    judges: Sequence[str] = ()  # beside those that the rubric watches
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of rewards and judges
    limit: int | None = None
    examples: int = 12


def read_run(folder: Path) -> AlignRun:
    """The run of an alignment folder. Raises FileNotFoundError where none is finished there."""
    if not (folder / RESOLVED).is_file():
        raise FileNotFoundError(f"{folder / RESOLVED}: no such file; give the folder of a `nava align`")
    if not (folder / "model" / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'model'}: no model; the alignment is not finished, run the same `nava align` again"
        )
    return AlignRun.load(folder / RESOLVED)


def report_folder(folder: Path) -> Path:
    """Folder of an alignment's closing page: beside it, because the alignment may be an output that DVC or a
    run record knows by its content."""
    return folder.with_name(f"{folder.name}-report")


def closing_inputs(run: AlignRun, folder: Path, options: ClosingOptions | None = None) -> ClosingInputs:
    """Inputs of the closing page of `run`, whose outputs lie in `folder`; the page goes to `report_folder`.

    Clips are made by the deployed sampler. Raises ValueError where the run's scorer names no rewards.
    """
    options, config, scorer = options or ClosingOptions(), run.config, dict(run.scorer[1])
    if not isinstance(scorer.get("weights"), Mapping):
        raise ValueError(f"{folder / RESOLVED} scorer: {run.scorer[0]} names no rewards to compare by")
    given = {**scorer.get("options", {})}
    for name, own in options.options.items():
        given[name] = {**given.get(name, {}), **own}
    rewards = [name for name, weight in scorer["weights"].items() if weight]
    unweighed = (name for name, weight in scorer["weights"].items() if not weight)
    judges = dict.fromkeys((*unweighed, *config.rubric.watched, *options.judges))
    return ClosingInputs(
        base=run.base,
        adapter=getattr(run, "adapter", None),
        aligned=folder / "model",
        codec=run.codec,
        prompts=options.prompts or _held_out(run, report_folder(folder)),
        out=report_folder(folder),
        rewards={name: given.get(name, {}) for name in rewards},
        judges={name: given.get(name, {}) for name in judges},
        base_weights=run.weights,
        generate=GenerateConfig(
            sampler=config.deployed,
            num_frames=config.num_frames,
            fps=config.fps,
            height=config.height,
            width=config.width,
            batch_size=config.held_out_plan().batch,
        ),
        limits=fill(GuardrailLimits, scorer.get("limits"), "guardrails"),
        log=folder / "metrics.jsonl",
        limit=options.limit,
        examples=options.examples,
        note=WEIGHTS_CHOSEN if config.stop.patience and not options.prompts else "",
    )


def _held_out(run: AlignRun, folder: Path) -> Path:
    """The file of held-out prompts of the run, else those that it drew from its prompts, as a file."""
    if held_out := getattr(run, "held_out", None):
        return held_out
    rows = {row.line: row for row in read_prompt_set(run.prompts, run.config, run.chosen).held_out}
    if not rows:
        raise ValueError(f"{run.prompts}: the run held out no prompts (align.stop.prompts=0); give --prompts")
    written = []
    for line, row in scan(run.prompts):
        if line not in rows or not isinstance(row, dict):
            continue
        found = rows[line]
        voices = [str(path.absolute()) if path else None for path in found.reference_paths]
        image = str(found.image_path.absolute()) if found.image_path else None
        written.append({**row, "data_id": found.data_id, "spk_wavs": voices, "image_path": image})
    dump(folder / PROMPTS, written)
    return folder / PROMPTS


def closing_results(folder: Path) -> RunResults:
    """Numbers and table of the closing report in `folder`. Raises as `read_json`."""
    found = read_json(folder / RESULT, "make the report again")
    return results_of(Reports({}, found), (), metrics_of(found["metrics"]))


def closing_files(folder: Path) -> dict[Path, str]:
    """The page of a closing report and some of its clips -> folder in a run's artifacts."""
    clips = {clip: f"clips/{side}" for side in (BEFORE, AFTER) for clip in example_clips(folder / side)}
    return {folder / PAGE: "", **clips}
