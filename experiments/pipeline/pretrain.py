"""Stages `pretrain_stage1` to `pretrain_stage3`: training on encoded sets, then sample clips."""

from __future__ import annotations

from pathlib import Path

from experiments.job import StageJob
from experiments.layout import Layout
from experiments.pipeline.samples import make_samples
from experiments.runs.lineage import CHECKPOINT_TAG, checkpoint_of
from experiments.runs.run import Interrupted
from experiments.runs.tracker import SpoolTracker
from pretrain.files import read_json
from pretrain.launch.launch import pretrain_stage
from pretrain.launch.stage_run import digests_of_sets, manifests_of_sets
from pretrain.launch.torchrun import IDENTITY
from pretrain.recipe import PretrainConfig
from pretrain.storage import place


def run(job: StageJob, tracker: SpoolTracker, stage: str) -> None:
    """Train a stage from the model of the previous one. Raises Interrupted if stopped early."""
    layout, config = job.layout, job.recipe.pretrain
    names = list(config.stages)
    before = names[: names.index(stage)]
    result = pretrain_stage(
        config,
        stage,
        latents_of(config, layout),
        layout.pretrain(stage),
        codec_id=codec_id_of(config, stage, layout),
        init_from=job.init_from or (layout.model(before[-1]) if before else None),
        nproc=job.ranks,
        port=job.port,
        nodes=job.nodes,
        trackers=tracker.factory(),
    )
    if result.status != "finished":
        raise Interrupted(
            f"{stage} stopped at step {result.step} with a checkpoint; the same command goes on from there"
        )
    model = layout.model(stage)
    checkpoint = checkpoint_of(model)
    tracker.set_tags({CHECKPOINT_TAG: checkpoint})
    tracker.log_model(model, f"{job.recipe.name}-{stage}", {CHECKPOINT_TAG: checkpoint})
    for path in make_samples(job.recipe.generate, layout, stage):
        tracker.log_artifact(str(path), "samples")


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


def check_same_data(config: PretrainConfig, stage: str, layout: Layout) -> None:
    """Raises ValueError if OUT/pretrain/STAGE was trained on sets that have changed since."""
    path = layout.pretrain(stage) / IDENTITY
    if not path.is_file():
        return
    before = read_json(path, f"remove {path.parent}").get("latents")
    after = digests_of_sets(latents_of(config, layout), config.stage(stage))
    if before is not None and before != after:
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        what = f"trained on other latents ({', '.join(changed)} changed)"
        raise ValueError(
            f"{path.parent}: {what}; give --no-resume to train anew, or --out for another folder"
        )
