"""The closing page of an alignment: before and after on held-out prompts, for any model, rewards and judges.

Nothing of the pipeline is needed: no corpus, no real clips, no simulated raters.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.report.before_after import before_after, paired
from experiments.report.closing_page import ClosingPage, closing_page
from experiments.report.examples import gains_of, pick
from experiments.scoring.clips import ClipFile, clip_file, list_clips
from experiments.scoring.config import hears, with_vocabulary
from experiments.scoring.rows import ScoredRow, score_in
from experiments.scoring.score_files import ScoreSettings, score_files
from experiments.scoring.store import config_id
from finetune.adapters import merge_adapter, read_adapter
from finetune.align_run import digest
from pretrain.codecs.base import check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.config import to_json
from pretrain.files import read_json, replacing, write_json
from pretrain.generate import generate
from pretrain.generation.config import GenerateConfig
from pretrain.jsonl import dump
from pretrain.launch.stage_run import model_config
from pretrain.model.checkpoint import WeightsName
from pretrain.prompt import read_prompts
from rewards.catalog import check_names, metrics_of, open_rewards
from rewards.guardrails import GuardrailLimits
from rewards.metric import Metric

BEFORE, AFTER = "before", "after"
PAGE, RESULT, SCORES = "report.html", "report.json", "scores.jsonl"
_DAMAGED = "remove it and make the report again"

RewardOptions = Mapping[str, Mapping[str, Any]]  # by name

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClosingInputs:
    """What is compared, by what, and where the page goes. Raises ValueError for nothing to compare by."""

    base: Path  # model folder before alignment
    aligned: Path  # model folder after it
    codec: Path
    prompts: Path  # JSONL of held-out prompts
    out: Path  # folder of the page and of everything it is made from
    rewards: Mapping[str, Mapping[str, Any]]  # what was optimised: name -> options
    judges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # never optimised
    adapter: Path | None = None  # of the base, where alignment started from one
    base_weights: WeightsName = "ema"
    generate: GenerateConfig = field(default_factory=GenerateConfig)  # its weights are those of `aligned`
    limits: GuardrailLimits = field(default_factory=GuardrailLimits)
    log: Path | None = None  # metrics.jsonl of the alignment, for curves over its rounds
    limit: int | None = None  # of prompts
    examples: int = 12  # prompts whose clips are on the page
    seed: int = 0  # of the bootstrap and of the examples that are drawn
    batch: int = 64  # clips that are scored at once
    note: str = ""  # a sentence about the prompts for the page

    def __post_init__(self) -> None:
        if not self.rewards and not self.judges:
            raise ValueError("no reward and no judge to compare by; name some")
        if both := self.rewards.keys() & self.judges.keys():
            raise ValueError(f"{min(both)!r} is rewarded and a judge; a judge must stay apart")
        if self.examples < 0 or self.batch < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError("examples must be at least 0, batch and limit at least 1")


def closing_report(inputs: ClosingInputs) -> Path:
    """Write report.html, report.json and scores.jsonl into `inputs.out`; returns the page's path.

    Clips before and after are made from the same noise, into before/ and after/; a side that is there for the
    same checkpoint, prompts and settings is kept, and so are its scores, so an interrupted call goes on.
    Everything is checked before a model is loaded. Raises ValueError or FileNotFoundError in one line.
    """
    inputs = replace(inputs, prompts=inputs.prompts.absolute())
    options = _options(inputs)
    _check(inputs, options)
    folders = {
        BEFORE: _clips(inputs, BEFORE, _start(inputs), inputs.base_weights),
        AFTER: _clips(inputs, AFTER, inputs.aligned, inputs.generate.weights),
    }
    rows = {side: _scored(inputs, options, side, folder) for side, folder in folders.items()}
    before, after = paired(rows[BEFORE], rows[AFTER])
    known = metrics_of((*inputs.rewards, *inputs.judges))
    found = before_after(
        before,
        after,
        None,
        inputs.limits,
        metrics_of(inputs.rewards),
        inputs.seed,
        known,
        metrics_of(inputs.judges),
    )
    gains = gains_of(before, after, [known[name] for name in found["metrics"]])
    chosen = pick(gains, inputs.examples, inputs.seed)
    result = {
        **found,
        "not_measured": _not_measured(known.values(), found["metrics"], rows),
        "reasons": _reasons(known.values(), rows),
        "checkpoints": {side: _facts(folder)["checkpoint"] for side, folder in folders.items()},
        "sampler": to_json(inputs.generate.sampler),
        "examples": {why: [before[place]["data_id"] for place in places] for why, places in chosen.items()},
        "note": inputs.note,
    }
    dump(inputs.out / SCORES, (row for side in (before, after) for row in side))
    write_json(inputs.out / RESULT, result, indent=1, allow_nan=False)
    html = closing_page(ClosingPage(result, known, before, after, gains, chosen, inputs.out, inputs.log))
    with replacing(inputs.out / PAGE) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return inputs.out / PAGE


def _options(inputs: ClosingInputs) -> RewardOptions:
    """Options of all rewards and judges; recognisers without a vocabulary get that of the corpus."""
    rows = read_prompts(inputs.prompts)[: inputs.limit]
    if not rows:
        raise ValueError(f"{inputs.prompts}: no prompts; give held-out prompts")
    files = [clip_file(row.data_id, Path(), row.prompt.text, row.meta, ()) for row in rows]
    given = {**inputs.rewards, **inputs.judges}
    check_names(given)
    hearing = {name: with_vocabulary(name, given[name], files) for name in given if hears(name)}
    return {**given, **hearing}


def _check(inputs: ClosingInputs, options: RewardOptions) -> None:
    codecs = load_codecs(inputs.codec)
    for model in (inputs.base, inputs.aligned):
        check_trained_on(codecs, inputs.codec, model_config(model), model)
    metrics_of(options)
    with open_rewards(list(options), options):
        pass


def _start(inputs: ClosingInputs) -> Path:
    """The model folder that alignment started from, with its adapter merged in."""
    if inputs.adapter is None:
        return inputs.base
    folder, described = inputs.out / "start", read_adapter(inputs.adapter)[0]
    if (folder / "config.json").is_file() and model_config(folder).get("adapter_id") == described.adapter_id:
        return folder
    merge_adapter(inputs.base, inputs.adapter, folder)
    return folder


def _clips(inputs: ClosingInputs, side: str, model: Path, weights: WeightsName) -> Path:
    """The folder of a side's clips, made where they are not there."""
    folder, config = inputs.out / side, replace(inputs.generate, weights=weights)
    facts = {
        "checkpoint": model_config(model).get("checkpoint_id", ""),
        "codec": load_codecs(inputs.codec).codec_id,
        "prompts": _digests(inputs.prompts),
        "limit": inputs.limit,
        "config": to_json(config),
    }
    if (folder / "index.jsonl").is_file() and _facts(folder) == facts:
        log.info("%s: clips of the same checkpoint, prompts and settings, kept", folder)
        return folder
    _note(folder).unlink(missing_ok=True)
    generate(config, model, inputs.codec, inputs.prompts, folder, inputs.limit, aside=True)
    write_json(_note(folder), facts)
    return folder


def _digests(prompts: Path) -> list[str]:
    """Of the prompts and of the files they name."""
    rows = read_prompts(prompts)
    named = {path for row in rows for path in (row.image_path, *row.reference_paths) if path is not None}
    return [digest(prompts), *sorted(digest(path) for path in named)]


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _facts(folder: Path) -> dict[str, Any]:
    return read_json(_note(folder), _DAMAGED) if _note(folder).is_file() else {}


def _scored(inputs: ClosingInputs, options: RewardOptions, side: str, folder: Path) -> list[ScoredRow]:
    """Rows of a side's clips; those of the same clips and settings are kept."""
    settings = ScoreSettings(
        rewards=tuple(options), options=options, limits=inputs.limits, batch=inputs.batch
    )
    # another way of scoring gets a file of its own
    kept = inputs.out / "scores" / f"{side}-{config_id(settings.described())}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    clips = list_clips(folder)
    said = {clip.name: clip for clip in clips}
    return [_row(row, side, said[row["clip"]]) for row in score_files(clips, settings, kept)]


def _row(row: Mapping[str, Any], side: str, clip: ClipFile) -> ScoredRow:
    """With the words and voices, by name or by their recordings, of the clip."""
    scores = {
        **row["scores"],
        **{entry: row["scores"][name] for entry, name in row.get("called", {}).items()},
    }
    path = f"{side}/{Path(row['path']).name}"
    return {
        "data_id": row["clip"],
        "source": side,
        "spans": list(clip.spans),
        "voices": list(clip.voices) or [str(path or "") for path in clip.references],
        **row,
        "path": path,
        "scores": scores,
    }


def _reasons(
    metrics: Collection[Metric], rows: Mapping[str, Sequence[ScoredRow]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Scorer -> side -> why clips have no score -> how many."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for scorer in dict.fromkeys(metric.scorer for metric in metrics):
        for side, of_side in rows.items():
            reasons = Counter(score_in(row, scorer).reason for row in of_side)
            reasons.pop("", None)
            if reasons:
                found.setdefault(scorer, {})[side] = dict(reasons.most_common())
    return found


def _not_measured(
    metrics: Collection[Metric], compared: Mapping[str, Any], rows: Mapping[str, Sequence[ScoredRow]]
) -> dict[str, str]:
    """Metrics that no prompt has on both sides, with the most frequent reason."""
    reasons, missing = (
        _reasons(metrics, rows),
        [m for m in metrics if m.has_direction and m.name not in compared],
    )
    return {metric.name: _first_reason(metric, reasons) for metric in missing}


def _first_reason(metric: Metric, reasons: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    counted: Counter[str] = Counter()
    for of_side in reasons.get(metric.scorer, {}).values():
        counted.update(of_side)
    return counted.most_common(1)[0][0] if counted else "no prompt was scored on both sides"
