"""Which activations of a block are kept for the backward pass and which are computed again."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}
_EXCHANGES = {
    torch.ops._c10d_functional.all_to_all_single.default,
    # its output is the all-to-all's input, so keeping both takes no more memory
    torch.ops._c10d_functional.wait_tensor.default,
}


def checkpointed(block: nn.Module, mode: str) -> nn.Module:
    """`none`: the block itself. `full`: only its input is kept. `selective`: also the outputs of
    self-attention, which are expensive to recompute at 32 K tokens (unlike cross-attention to 512 text
    states), and their all-to-alls."""
    if mode == "none":
        return block
    options: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _keep)} if mode == "selective" else {}
    )
    return checkpoint_wrapper(block, preserve_rng_state=False, **options)


def _keep(ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_dear = operation in _EXCHANGES or (operation in _ATTENTION and args[0].shape[-2] <= args[1].shape[-2])
    return CheckpointPolicy.MUST_SAVE if is_dear else CheckpointPolicy.PREFER_RECOMPUTE
