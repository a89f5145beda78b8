"""torchtitan's JobConfig, built from our recipe and never written by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torchtitan.config import (
    ActivationCheckpoint,
    Checkpoint,
    Comm,
    Debug,
    Job,
    JobConfig,
    LRScheduler,
    Metrics,
    Model,
    Optimizer,
    Parallelism,
    Training,
)
from torchtitan.config.job_config import Compile

from pretrain.recipe import PretrainConfig
from pretrain.titan.float8 import float8_converters, float8_quantize
from pretrain.titan.moments import optimizer_name

TRAIN_SPEC = "nava"


def job_config(config: PretrainConfig, stage_name: str, out: Path, world_size: int) -> JobConfig:
    """One stage as a torchtitan job whose dump folder is `out`."""
    stage, optimizer, parallel = config.stage(stage_name), config.optimizer, config.parallel
    return JobConfig(
        job=Job(dump_folder=str(out), description=f"{config.flavor} {stage.name}"),
        model=Model(name=TRAIN_SPEC, flavor=config.flavor, converters=float8_converters(config)),
        quantize=float8_quantize(config),
        metrics=Metrics(log_freq=config.log_every, disable_color_printing=True),
        optimizer=Optimizer(
            name=optimizer_name(optimizer.moments),
            lr=stage.lr,
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        ),
        lr_scheduler=LRScheduler(
            warmup_steps=stage.warmup_steps,
            decay_ratio=stage.decay_fraction,
            decay_type=stage.decay,
            min_lr_factor=stage.min_lr_factor,
        ),
        training=Training(
            steps=stage.steps,
            local_batch_size=config.local_batch(world_size),
            global_batch_size=config.global_batch_size,
            max_norm=config.optimizer.grad_clip,
            mixed_precision_param="bfloat16" if config.mixed_precision == "bf16" else "float32",
            seq_len=1,  # unused: token counts come from the batches
        ),
        parallelism=Parallelism(
            data_parallel_replicate_degree=parallel.replicas,
            data_parallel_shard_degree=-1,
            context_parallel_degree=parallel.context,
            fsdp_reshard_after_forward="default" if parallel.reshard_after_forward else "never",
        ),
        checkpoint=Checkpoint(
            enable=False,  # the trainer puts a manager of its own in the place of torchtitan's
            enable_ft_dataloader_checkpoints=False,
            folder="",
            interval=config.checkpoint.interval,
            async_mode="async" if config.checkpoint.asynchronous else "disabled",
            # retention is ours: torchtitan has no keep-every-n and counts unfinished folders
            keep_latest_k=0,
            last_save_model_only=False,
        ),
        activation_checkpoint=ActivationCheckpoint(mode=parallel.activation_checkpointing),
        compile=Compile(enable=parallel.compile_blocks),
        # gloo has no flight recorder
        comm=Comm(
            init_timeout_seconds=1800,
            trace_buf_size=config.monitor.trace_buf_size if torch.cuda.is_available() else 0,
        ),
        debug=Debug(seed=config.seed, deterministic=config.deterministic),
    )
