"""Memory of a sampling step: of a whole model, and of a policy on the shards of its alignment."""

from __future__ import annotations

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_activations import latent_bytes, saved_by_embedders, text_bytes, tokens_here
from pretrain.model.plan_setup import Setup
from pretrain.model.plan_sizes import (
    BF16,
    FP32,
    adapter_moments,
    adapter_sizes,
    base_sizes,
    rounded_map,
)
from pretrain.model.plan_training import gathered_base

# Copies of the latents, fp32. Euler's: the noise, the state, the velocity before. The release's: the noise,
# UniPC's two last answers, its last sample and its state; guidance's sum twice, the full velocity and a
# weakened one.
IN_A_PASS = {True: 9, False: 3}
# UniPC's own step: what it keeps, the state, the corrected and the predicted sample, their differences
IN_THE_SOLVER = 13


def generating(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """A whole model on each GPU, without shards: its weights, and what a block makes before it returns."""
    held = {"parameters": base_sizes(args, setup.base).total}
    return {**held, **_sampling_parts(args, clip, setup, FP32 if setup.base == "fp32" else BF16)}


def rolling_out(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Forward passes in bf16 on the shards of an alignment, whose states wait."""
    adapter = adapter_sizes(args, setup.rank) / setup.shards
    return {
        "parameters": base_sizes(args, setup.base).total / setup.shards,
        "adapters": FP32 * setup.adapters * adapter,
        "optimizer": adapter_moments(args, setup.rank, setup.moments) / setup.shards,
        "ema": FP32 * adapter if setup.ema else 0.0,
        "gathered_parameters": gathered_base(args, setup),
        **_sampling_parts(args, clip, setup, BF16),
    }


def _sampling_parts(args: ModelArgs, clip: ClipShape, setup: Setup, size: int) -> dict[str, float]:
    """The larger of a pass, whose activations are of `size` bytes, and the solver's step after it."""
    batch = setup.local_batch
    text, latents = text_bytes(args, clip, batch), latent_bytes(args, clip, batch)
    in_a_pass = {
        "block": _block(args, tokens_here(clip, setup), setup, size),
        "embedders_and_heads": text + saved_by_embedders(args, clip, batch, trained=False),
        "latents": IN_A_PASS[setup.guided] * latents,
    }
    in_the_solver = {"block": 0.0, "embedders_and_heads": text, "latents": IN_THE_SOLVER * latents}
    if setup.cached_passes:
        features = tokens_here(clip, setup) * size * args.width  # of one pass
        in_a_pass["feature_cache"] = setup.cached_passes * features
        in_the_solver["feature_cache"] = (setup.cached_passes + 1) * features
    if setup.guided and sum(in_the_solver.values()) > sum(in_a_pass.values()):
        return in_the_solver
    return in_a_pass


def _block(args: ModelArgs, tokens: float, setup: Setup, size: int) -> float:
    """Bytes of what a block holds in its FFN.

    Per token: the input, q, k and v of each stream and joined, the attended, and in the FFN a modulated norm
    in fp32, its cast, the input again and two hidden states, of which one lives while a quantised map becomes
    a weight.
    """
    hidden = tokens * size * args.ffn_width
    in_use = max(hidden, rounded_map(args, setup.base))
    return tokens * (10 * size + FP32) * args.width + hidden + in_use
