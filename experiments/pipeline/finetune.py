"""Supervised fine-tuning of a model on given clips, as a tracked training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline.finetune_sets import base_sets, prepared_sets
from experiments.runs.inputs import digest_of_input
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.model_names import FINETUNED, PARENT_TAG, adapter_tags, model_tags, registered_name
from experiments.runs.provenance import code_digests
from experiments.runs.run import Interrupted
from experiments.runs.tracker import SpoolTracker
from experiments.runs.trackers import factories
from finetune.sft.config import CLIPS, STAGE
from finetune.sft.finetune_run import FinetuneRun
from finetune.sft.launch import finetune_model
from finetune.sft.prompt_batches import FOLDER, of_prompts, of_samples, write_batches
from finetune.sft.sound_checks import spread
from finetune.sft.trainer import ADAPTER
from pretrain.codecs.base import check_trained_on
from pretrain.codecs.load import load_codecs
from pretrain.data.stream.store import LatentStore
from pretrain.launch.stage_run import check_parent, model_config
from pretrain.storage import is_remote, place

CODE_OF = "align"  # the stage of dvc.yaml whose code covers that of a fine-tuning


@dataclass(frozen=True, kw_only=True)
class FinetuneInputs:
    """What a fine-tuning is made from."""

    clips: Path
    model: Path
    codec: Path
    own_model: bool = False  # not the recipe's of this OUT


@dataclass(frozen=True)
class FinetuneLayout(Layout):
    """Paths of a fine-tuning into the folder `to`, whose record and encoded clips are beside it."""

    to: Path = Path("out/finetune")

    @property
    def finetune(self) -> Path:
        return self.to

    @property
    def sets(self) -> Path:
        return self.to.with_name(f"{self.to.name}-sets")

    @property
    def runs(self) -> Path:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.to.with_name(f".{self.to.name}.runs")


def finetuning_of(job: StageJob, inputs: FinetuneInputs) -> FinetuneRun:
    """The fine-tuning of the job's recipe, its clips checked and encoded. Raises as `prepared_sets` and
    `check_parent`, and where the model was trained with another codec."""
    recipe, layout = job.recipe, job.layout
    assert isinstance(layout, FinetuneLayout)
    config, described = recipe.finetune, model_config(inputs.model)
    codecs = load_codecs(inputs.codec)
    check_trained_on(codecs, inputs.codec, described, inputs.model)
    base, places = base_sets(config, recipe.pretrain, layout)
    stage = config.as_pretraining(described["flavor"], base)
    stage.local_batch(job.ranks * job.nodes.count)
    folder, speech = prepared_sets(
        inputs.clips, config, recipe.encode, recipe.generate, inputs.codec, layout.sets
    )
    run = FinetuneRun(
        config=stage,
        stage=STAGE,
        latents=layout.sets.absolute(),
        places={name: str(_absolute(path)) for name, path in {CLIPS: folder, **places}.items()},
        out=layout.finetune.absolute(),
        codec_id=codecs.codec_id,
        init_from=_absolute(inputs.model),
        code=code_digests(CODE_OF, job.root),
        trash=layout.trash,
        anyway=job.anyway,
        finetune=config,
        sampler=recipe.generate.sampler,
        codec=str(inputs.codec.absolute()),
        speech=speech,
    )
    check_parent(run)
    return run


def finetune_tracked(
    job: StageJob, tracker: SpoolTracker, inputs: FinetuneInputs, prepared: FinetuneRun
) -> None:
    """Fine-tune into job.layout.finetune. Raises Interrupted if stopped early."""
    run = dataclasses.replace(prepared, trackers=factories(job.recipe.tracking, tracker))
    parent = str(model_config(inputs.model)["checkpoint_id"])
    tracker.set_tags(
        {
            "nava.model": str(inputs.model),
            PARENT_TAG: parent,
            "nava.codec": str(inputs.codec),
            "nava.clips": f"{inputs.clips} {run.identity()['latents'][CLIPS]}",
            "nava.trained": "all weights" if run.finetune.full else f"LoRA of rank {run.finetune.lora.rank}",
        }
    )
    if notice := run.config.stage(STAGE).notice:
        print(f"note: {notice}")
    _write_prompts(run, job)
    result = finetune_model(run, job.ranks, job.port, nodes=job.nodes)
    if result.status != "finished" or result.model is None:
        raise Interrupted(
            f"finetune stopped at step {result.step} with a checkpoint; the same command goes on from there"
        )
    checkpoint = checkpoint_of(result.model)
    tracker.set_tags({CHECKPOINT_TAG: checkpoint})
    # a version of what it started from, as with alignment
    registered = "" if inputs.own_model else registered_name(job.recipe.name)
    tags = model_tags(result.model) | {PARENT_TAG: parent}
    tracker.log_model(result.model, f"{job.recipe.name}-finetuned", tags, registered, FINETUNED, parent)
    if (adapter := run.out / ADAPTER).is_dir():
        tracker.log_model(adapter, f"{job.recipe.name}-adapter", adapter_tags(adapter, checkpoint))


def digests(run: FinetuneRun, inputs: FinetuneInputs) -> dict[str, str]:
    """Path -> digest of what is read, for the run's record and its parents."""
    given = [inputs.model, inputs.codec, *(() if inputs.clips.is_dir() else (inputs.clips,))]
    given += [Path(path) for path in run.places.values()]
    return {str(path): digest_of_input(path) for path in given if not is_remote(path) and path.exists()}


def _write_prompts(run: FinetuneRun, job: StageJob) -> None:
    """The fixed prompts whose clips are made during training: of a file, or texts of the clips."""
    config = run.finetune
    if not config.clips_every:
        return
    if config.prompts:
        codecs = load_codecs(Path(run.codec))
        batches = of_prompts(Path(config.prompts), job.recipe.generate, codecs)
    else:
        store = LatentStore(place(run.places[CLIPS]))
        whole = [sample for sample in store if sample.video is not None and sample.audio is not None]
        batches = of_samples(list(spread(whole, config.clips)) if config.clips else [], config.seed)
    write_batches(run.out / FOLDER, batches)


def _absolute(path: Path) -> Path:
    return path if is_remote(path) else path.absolute()
