"""The published model: 6.3 B parameters, 70 K steps at an effective batch of 512 (nava.md, sections 2 and 3)."""

from experiments.recipes.base import Recipe
from pretrain.recipe import CheckpointConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from pretrain.schedule import StageConfig


def nava_6b() -> Recipe:
    """Full size. How the 70 K steps divide over the stages is not in the text we have; halves and quarters are ours."""
    return Recipe(
        name="nava_6b",
        pretrain=PretrainConfig(
            flavor="nava_6b",
            stages={
                "stage1": _stage("stage1", 35_000, tasks={"T2A": 3.0, "T2AV": 0.5, "TI2AV": 0.5}, sets={"paired": 1.0}, audio="audio_only"),
                "stage2": _stage("stage2", 25_000, tasks={"T2A": 1.0, "T2AV": 1.5, "TI2AV": 1.5}, sets={"paired": 1.0}, audio="hq_audio"),
                "stage3": _stage("stage3", 10_000, tasks={"T2AV": 1.0, "TI2AV": 0.5, "TIA2AV": 0.5}, sets={"curated": 1.0}, audio=""),
            },
            global_batch_size=512,
            local_batch_size=1,
            ema_decay=0.9999,
            optimizer=OptimizerConfig(beta2=0.999),
            checkpoint=CheckpointConfig(interval=500, keep_last=3, keep_every=5000),
            parallel=ParallelConfig(activation_checkpointing="full", compile_blocks=True),
            validate_every=1000,
        ),
    )


def _stage(name: str, steps: int, tasks: dict[str, float], sets: dict[str, float], audio: str) -> StageConfig:
    return StageConfig(
        name=name, steps=steps, tasks=tasks, sets=sets, audio_sets={audio: 1.0} if audio else {}, lr=1e-4, warmup_steps=1000
    )
