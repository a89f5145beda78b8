"""What the numbers of a plan rest on, for the reader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.alignment.round_plan import beside_line
from finetune.lora import LoraConfig
from pretrain.model.args import ModelArgs
from pretrain.model.plan import GIB
from pretrain.model.plan_memory import FRAGMENTATION, RUNTIME_BYTES
from pretrain.model.plan_setup import Setup

if TYPE_CHECKING:
    from experiments.recipes.base import Recipe

_RECOMPUTED = {
    "none": "nothing is recomputed",
    "selective": "blocks keep their input and self-attention, the rest is recomputed",
    "full": "blocks keep their input, all of them is recomputed",
}
_MOMENT = {
    "train": "the loss, a block's backward pass, a reduction",
    "align": "rollouts by the round's and the deployed sampler, encoding of texts, decoding, a reward, an "
    "update (the loss of the objective as nft's, a block's backward pass, a reduction; whole gradients of "
    "the adapter wait for a step's last micro-batch)",
    "generate": "encoding of texts, a block or the step of the sampler, decoding",
}


def assumptions(setup: Setup, args: ModelArgs, mfu: float, peak_tflops: float) -> list[str]:
    """Of the memory of a setup, and of the times of a training."""
    return [
        _states(setup),
        *_computed(setup),
        f"memory is that of the moment at which most is held: {_MOMENT.get(setup.work, _MOMENT['train'])}",
        _beside(setup, args),
        f"allowance: {RUNTIME_BYTES / GIB:.0f} GiB for CUDA and NCCL, and {FRAGMENTATION:.0%} of what comes "
        "and goes in a step",
        "GPU sizes are decimal: 80 GB = 74.5 GiB, 141 GB = 131.3 GiB",
        "FLOPs are matmuls alone, 2 per multiply-add, as torch's FlopCounterMode counts them; model FLOPs "
        "leave recomputation out",
        f"times follow from model FLOPs at {mfu:.0%} of {peak_tflops:g} TFLOP/s per GPU: the {mfu:.0%} is "
        "stated, not measured; data, validation and checkpoints are taken to be hidden",
    ]


def recipe_lines(recipe: Recipe | None, work: str) -> list[str]:
    """Settings of the recipe's section for a work that the plan's memory does not follow."""
    sections: dict[str, Any] = {"train": "pretrain", "lora": "finetune", "align": "align"}
    if recipe is None or work not in sections:
        return []
    config, found = getattr(recipe, name := sections[work]), []
    if config.mixed_precision == "fp32":
        found.append(f"{name}.mixed_precision is fp32: activations take twice what is counted here, in bf16")
    if getattr(config, "float8", "none") != "none":
        found.append(f"{name}.float8 is {config.float8}: its products are counted as bf16's")
    if work != "train" and set(config.lora.targets) != set(LoraConfig().targets):
        counted = ", ".join(LoraConfig().targets)
        found.append(f"{name}.lora.targets are others: adapters are counted on {counted}")
    return found


def _states(setup: Setup) -> str:
    held = {"fp32": "fp32", "8bit": "8 bits with a scale for 64 to 256 values"}[setup.moments]
    if setup.work == "generate":
        return f"every GPU holds the whole model, in {setup.base}; passes of guidance follow one another"
    if setup.work == "train":
        return (
            f"parameters, gradients and the EMA are fp32, AdamW's two moments in {held}, sharded over all "
            "GPUs of a replica"
        )
    return (
        f"the frozen base is in {setup.base}, adapters, their gradients and average in fp32, AdamW's moments "
        f"in {held}, sharded over all GPUs of a replica"
    )


def _computed(setup: Setup) -> list[str]:
    if setup.work == "generate":
        return ["activations are bf16 (fp32 where the model is), norms in fp32, flash attention"]
    gathered = "one in use, one prefetched"
    if setup.one_unit:
        gathered = "all together (parallel.shard_blocks=false)"
    elif not setup.reshard:
        gathered = "all of them until the backward pass is over (parallel.reshard_after_forward=false)"
    steps = (
        "one micro-batch" if setup.micro_batches == 1 else "more than one micro-batch, whose gradients wait"
    )
    compiled = ["the memory is that of blocks that are not compiled (parallel.compile_blocks is on)"]
    return [
        f"blocks are gathered in bf16, a quantised base's as bytes, {gathered}; embedders and heads stay "
        "gathered; the time path is fp32",
        f"activations are bf16, norms in fp32, flash attention; {_RECOMPUTED[setup.checkpointing]} in the "
        f"backward pass; a step has {steps}",
        *(compiled if setup.compiled else []),
    ]


def _beside(setup: Setup, args: ModelArgs) -> str:
    if setup.work in ("train", "lora"):
        return "training reads latents, so codecs are not on its GPUs; clips made meanwhile are not counted"
    return beside_line(args, setup.parked, setup.parked_rewards if setup.work == "align" else None)
