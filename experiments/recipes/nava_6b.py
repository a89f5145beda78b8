"""The paper's run: 6.3 B parameters, three stages, 70 K steps at a batch of 512, AdamW at 1e-4 (nava.md,
sections 2 and 3)."""

from experiments.preparation.config import PrepareConfig
from experiments.recipes import full_size_alignment
from experiments.recipes.base import Recipe
from finetune.sft.config import FinetuneConfig
from pretrain.data.encoding.config import EncodeConfig
from pretrain.data.stream.buckets import BucketConfig
from pretrain.dropout import DropoutConfig
from pretrain.flow.path import LevelConfig
from pretrain.generation.config import GenerateConfig
from pretrain.objective import ObjectiveConfig
from pretrain.recipe import CheckpointConfig, OptimizerConfig, ParallelConfig, PretrainConfig
from pretrain.sampling import SamplerConfig
from pretrain.schedule import StageConfig

# Of the steps on audio-visual data. The paper names the tasks and not their shares, so these are ours: half
# of the steps may have a first frame, and a tenth keeps the picture without sound that the warm start brings
AUDIO_VISUAL_TASKS = {"T2AV": 0.4, "TI2AV": 0.25, "TIA2AV": 0.25, "T2V": 0.1}


def nava_6b() -> Recipe:
    """Warm-started by `nava pretrain nava_6b --from MODEL`, a folder of `nava import wan2.2` (or of `nava
    import nava`).

    Stated in nava.md: everything of the objective, the optimizer but its betas and warmup, batch, steps in
    all, the five tasks, and the ratios of audio alone to both per stage. Ours: how the steps divide over the
    stages and the audio-visual ones over their tasks, betas, 1000 steps of warmup, the EMA, the intervals,
    and the list of sizes that clips are brought to. The rate stays at 1e-4 after its warmup, as in the
    release, whose scheduler never steps.
    """
    return Recipe(
        name="nava_6b",
        prepare=PrepareConfig(min_speech_share=0.5, min_speech_s=1.0, min_reference_s=1.6, min_side=256),
        encode=EncodeConfig(
            latent_dtype="bfloat16",
            batch_size=1,
            buckets=BucketConfig(
                sizes=("704x1280", "1280x704", "960x960"), frames=(25, 49, 73, 97, 121, 145)
            ),
        ),
        # the sampler of the release
        generate=GenerateConfig(
            sampler=SamplerConfig(), num_frames=145, height=704, width=1280, batch_size=1
        ),
        pretrain=PretrainConfig(
            # attends to text padding and lets a timbre token replace its text, as the weights learned it
            flavor="nava_6b_published",
            stages=_stages(),
            global_batch_size=512,
            local_batch_size=1,
            mixed_precision="bf16",
            ema_decay=0.9999,
            optimizer=OptimizerConfig(beta1=0.9, beta2=0.999, weight_decay=0.0, grad_clip=1.0),
            objective=_objective(),
            checkpoint=CheckpointConfig(interval=500, keep_last=3, keep_every=5000),
            parallel=ParallelConfig(activation_checkpointing="full", compile_blocks=True),
            validate_every=1000,
        ),
        finetune=_finetuning(),
        align=full_size_alignment.alignment(),
        reward_files=full_size_alignment.reward_files(),
        ray=full_size_alignment.ray(),
    )


def _objective() -> ObjectiveConfig:
    return ObjectiveConfig(
        audio_weight=0.2,
        levels=LevelConfig(draw="release", weight="release", shift=5.0),
        dropout=DropoutConfig(text=0.1, modality_mask=0.2, timbre_kept=0.9, first_frame=0.5),
    )


def _finetuning() -> FinetuneConfig:
    """Pretraining's objective, one clip a GPU, everything sharded; rate, batch and steps are ours, and were
    not tried at this size."""
    return FinetuneConfig(
        steps=2000,
        lr=1e-4,
        warmup_steps=100,
        global_batch_size=32,
        local_batch_size=1,
        objective=_objective(),
        parallel=ParallelConfig(activation_checkpointing="full"),
        checkpoint=CheckpointConfig(interval=250),
        validate_every=500,
        clips_every=500,
    )


def _stages() -> dict[str, StageConfig]:
    stages = (
        _stage("stage1", 35_000, _tasks(3.0, 1.0), "paired", "audio_only"),
        _stage("stage2", 25_000, _tasks(1.0, 3.0), "paired", "hq_audio"),
        _stage("stage3", 10_000, _tasks(0.0, 1.0), "curated", ""),
    )
    return {stage.name: stage for stage in stages}


def _tasks(audio_only: float, audio_visual: float) -> dict[str, float]:
    """Weights of the five tasks at a ratio audio-only : audio-visual data (nava.md, section 3).

    T2V takes the pictures of audio-visual data, so it counts on that side; audio-only data can be T2A alone.
    """
    shares = {task: round(audio_visual * share, 6) for task, share in AUDIO_VISUAL_TASKS.items()}
    return {"T2A": audio_only, **shares}


def _stage(name: str, steps: int, tasks: dict[str, float], video_set: str, audio: str) -> StageConfig:
    return StageConfig(
        name=name,
        steps=steps,
        tasks=tasks,
        sets={video_set: 1.0},
        audio_sets={audio: 1.0} if audio else {},
        lr=1e-4,
        warmup_steps=1000,
        decay_fraction=0.0,
        min_lr_factor=1.0,
    )
