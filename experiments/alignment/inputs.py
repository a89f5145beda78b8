"""What an alignment is made from: the pipeline's outputs, or a model, codec and prompts of one's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.job import StageJob
from experiments.layout import CHOSEN, PAIRS, VOTED_CLIPS, Layout
from experiments.runs.lineage import SHA256
from experiments.runs.tracker import SpoolTracker
from experiments.runs.trackers import factories
from experiments.scoring.latents import scorer_options
from finetune.adapters import read_adapter
from finetune.align_run import AlignRun
from finetune.lora import LoraConfig
from finetune.rollout_store import INDEX
from pretrain.data.corpus.texts import ALIGN_TRAIN
from pretrain.files import sha256_of
from pretrain.launch.stage_run import model_config

# early stopping draws held-out prompts from these as well: align_held_out is for evaluation only
PROMPTS = f"{ALIGN_TRAIN}.jsonl"
BASE = "stage3"
CURATE = "`nava curate prompts` first, or set align.curated_prompts=false"
VOTE = "`nava votes` first, or leave gsb_dpo out of align.sequence"


@dataclass(frozen=True, kw_only=True)
class AlignInputs:
    """Inputs of an alignment; None = the pipeline's, or none where it has none.

    Pairs and the rollout store of their clips are given together.
    """

    model: Path | None = None
    adapter: Path | None = None  # of that model, to start from
    codec: Path | None = None
    prompts: Path | None = None
    held_out: Path | None = None
    rubric: Path | None = None  # the file that replaced the recipe's rubric
    pairs: Path | None = None
    clips: Path | None = None

    def __post_init__(self) -> None:
        if (self.pairs is None) != (self.clips is None):
            given, other = ("--pairs", "--clips") if self.pairs else ("--clips", "--pairs")
            raise ValueError(
                f"{given} needs {other}: preference pairs, and the rollout store of the clips they speak of"
            )

    @property
    def own(self) -> bool:
        """Something is not the pipeline's."""
        return any(getattr(self, item.name) is not None for item in dataclasses.fields(self))


@dataclass(frozen=True)
class AlignLayout(Layout):
    """Paths of an alignment into the folder `to`, whose record is kept beside it and not as the stage's."""

    to: Path = Path("out/align")

    @property
    def align(self) -> Path:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.to

    @property
    def runs(self) -> Path:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.to.with_name(f".{self.to.name}.runs")


def align_run(
    job: StageJob, tracker: SpoolTracker | None = None, inputs: AlignInputs = AlignInputs()
) -> AlignRun:
    """The alignment of the job's recipe into job.layout.align.

    Raises FileNotFoundError where an output of an earlier stage is needed and missing.
    """
    layout, config, weights = job.layout, job.recipe.alignment, "ema"
    codec = inputs.codec or layout.codec
    if inputs.adapter:
        adapter = read_adapter(inputs.adapter)[0]
        # what the frozen base is held in is this run's: a matter of its memory, not of the adapter's shapes
        lora = dataclasses.replace(adapter.config, base=config.lora.base)
        config, weights = dataclasses.replace(config, lora=lora), adapter.base_weights
    curated = config.curated_prompts and inputs.prompts is None
    chosen = require(layout.chosen / CHOSEN, CURATE) if curated else None
    pairs, clips = pairs_and_clips(job, inputs)
    return AlignRun(
        config=config,
        base=inputs.model or layout.model(BASE),
        weights=weights,
        adapter=inputs.adapter,
        codec=codec,
        prompts=inputs.prompts or layout.prompts / PROMPTS,
        held_out=inputs.held_out,
        out=layout.align,
        trackers=factories(job.recipe.tracking, tracker),
        scorer=(
            "experiments.scoring.latents:AlignScorer",
            scorer_options(config, layout.corpus, codec, layout.syncnet, files=job.recipe.reward_files),
        ),
        pairs=pairs,
        clips=clips,
        chosen=chosen,
    )


def check_lora(asked: LoraConfig, default: LoraConfig, folder: Path) -> None:
    """Raises ValueError in one line for a setting that is neither `default`, the recipe's, nor the adapter's.

    Rank, alpha and layers are the adapter's, so a run would go on without what was asked for.
    """
    given = read_adapter(folder)[0].config
    for name in ("rank", "alpha", "targets", "rslora"):
        value, found = getattr(asked, name), getattr(given, name)
        if value not in (found, getattr(default, name)):
            raise ValueError(
                f"align.lora.{name} {shown(value)}, but the adapter {folder}, with which it goes on, has "
                f"{shown(found)}; leave the setting out or set it to {shown(found)}, or start a new adapter "
                "without --adapter"
            )


def shown(value: Any) -> str:
    """A setting as `--set` takes it."""
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value).lower()


def pairs_and_clips(job: StageJob, inputs: AlignInputs = AlignInputs()) -> tuple[Path | None, Path | None]:
    """Preference pairs and the rollout store of their clips, those given or those of earlier stages.

    None if no objective of the recipe uses pairs. Raises ValueError where they were given for nothing.
    """
    if not job.recipe.align.needs_pairs:
        if inputs.pairs:
            raise ValueError(
                "--pairs and --clips belong to gsb_dpo; name it in align.sequence, or leave them out"
            )
        return None, None
    if inputs.pairs:
        return inputs.pairs, inputs.clips
    pairs, voted = require(job.layout.votes / PAIRS, VOTE), job.layout.votes / VOTED_CLIPS
    return pairs, voted if voted.is_dir() else require(job.layout.rollouts, "`nava rollout` first")


def require(path: Path, hint: str) -> Path:
    """The path. Raises FileNotFoundError where it does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; run {hint}")
    return path


def digests(run: AlignRun, inputs: AlignInputs) -> dict[str, str]:
    """Path -> digest of everything that an alignment with inputs of its own reads: files by sha256, folders
    by the id or index they carry."""
    files = (run.prompts, run.held_out, run.pairs, run.chosen, inputs.rubric)
    found = {str(path): f"{SHA256}{digest_of(path)}" for path in files if path}
    found[str(run.base)] = f"checkpoint:{model_config(run.base)['checkpoint_id']}"
    found[str(run.codec)] = f"{SHA256}{digest_of(run.codec / 'config.json')}"
    if run.adapter:
        found[str(run.adapter)] = f"adapter:{read_adapter(run.adapter)[0].adapter_id}"
    if run.clips:
        found[str(run.clips)] = f"{SHA256}{digest_of(run.clips / INDEX)}"
    return found


def digest_of(path: Path) -> str:
    """sha256 of a file. Raises FileNotFoundError in one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return sha256_of(path)


def origin_tags(run: AlignRun, inputs: AlignInputs = AlignInputs()) -> dict[str, str]:
    """Tags of a run: initial checkpoint, codec, prompts, rubric and pairs, by file and digest."""
    identity = run.identity()
    tags = {
        "nava.model": str(run.base),
        "nava.parent_checkpoint": str(model_config(run.base)["checkpoint_id"]),
        "nava.codec": str(run.codec),
        "nava.prompts": f"{run.prompts} sha256 {identity['prompts']}",
        "nava.rubric": ", ".join(
            f"{name} {route.weight:g} ({route.modality})"
            for name, route in run.config.rubric.routes().items()
        ),
    }
    given: dict[str, Any] = {
        "nava.held_out": run.held_out and f"{run.held_out} sha256 {identity['held_out']}",
        "nava.adapter": run.adapter and f"{run.adapter} {identity['adapter']}",
        "nava.rubric_file": inputs.rubric and f"{inputs.rubric} sha256 {digest_of(inputs.rubric)}",
        "nava.pairs": run.pairs and f"{run.pairs} sha256 {identity['pairs']}",
        "nava.clips": run.clips and str(run.clips),
    }
    return tags | {name: text for name, text in given.items() if text}
