"""Stages `pretrain_stage1` to `pretrain_stage3`: training on encoded sets, then sample clips."""

from __future__ import annotations

from pathlib import Path

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline.samples import make_samples
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.model_names import PRETRAINED, model_tags, registered_name
from experiments.runs.provenance import code_digests
from experiments.runs.run import Interrupted
from experiments.runs.tracker import SpoolTracker
from experiments.runs.trackers import factories
from pretrain.files import read_json
from pretrain.launch.launch import train_run
from pretrain.launch.stage_run import StageRun, manifests_of_sets
from pretrain.recipe import PretrainConfig
from pretrain.storage import place


def run(job: StageJob, tracker: SpoolTracker, stage: str) -> None:
    """Train a stage from the model of the previous one. Raises Interrupted if stopped early."""
    layout = job.layout
    training = stage_run_of(job, stage, tracker)
    if notice := job.recipe.pretrain.stage(stage).notice:
        print(f"note: {notice}")
    result = train_run(training, nproc=job.ranks, port=job.port, nodes=job.nodes)
    if result.status != "finished":
        raise Interrupted(
            f"{stage} stopped at step {result.step} with a checkpoint; the same command goes on from there"
        )
    model = layout.model(stage)
    tracker.set_tags({CHECKPOINT_TAG: checkpoint_of(model)})
    # the last stage's is the recipe's model; those before it are parts of its making
    last = stage == list(job.recipe.pretrain.stages)[-1]
    names = (registered_name(job.recipe.name), PRETRAINED) if last else ("", "")
    tracker.log_model(model, f"{job.recipe.name}-{stage}", model_tags(model), *names)
    for path in make_samples(job.recipe.generate, layout, stage):
        tracker.log_artifact(str(path), "samples")


def stage_run_of(job: StageJob, stage: str, tracker: SpoolTracker | None = None) -> StageRun:
    """The stage as its ranks get it. Raises FileNotFoundError without a codec, as `codec_id_of`."""
    layout, config = job.layout, job.recipe.pretrain
    names = list(config.stages)
    before = names[: names.index(stage)]
    start = job.init_from or (layout.model(before[-1]) if before else None)
    return StageRun(
        config=config,
        stage=stage,
        latents=latents_of(config, layout).absolute(),
        out=layout.pretrain(stage).absolute(),
        codec_id=codec_id_of(config, stage, layout),
        init_from=start.absolute() if start else None,
        trackers=factories(job.recipe.tracking, tracker),
        code=code_digests(f"pretrain_{stage}", job.root),
        trash=layout.trash,
        anyway=job.anyway,
    )


def latents_of(config: PretrainConfig, layout: Layout) -> Path:
    """`pretrain.latents` if set by the recipe or a setting, else OUT/latents."""
    return place(config.latents) if config.latents else layout.latents


def codec_id_of(config: PretrainConfig, stage: str, layout: Layout) -> str:
    """The codec of the latents: OUT/codec, or for a custom `latents` folder the one named by its sets.

    Raises FileNotFoundError without OUT/codec, ValueError where sets were made by different codecs.
    """
    if not config.latents:
        path = layout.codec / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; fit the codec first: `nava codec`")
        return str(read_json(path, "fit the codec first: `nava codec`")["codec_id"])
    manifests = manifests_of_sets(latents_of(config, layout), config.stage(stage))
    found = {name: str(manifest["codec_id"]) for name, manifest in manifests.items()}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{name} by {codec}" for name, codec in found.items())
        raise ValueError(f"{config.latents}: sets of different codecs ({named}); encode them with one")
    return next(iter(found.values()), "")
