"""Memory of a training step at its peak: the largest of a few moments, each from sizes alone.

At the loss all activations are kept. In the backward pass they go, block by block from the last, while
gradients come: those of a block in bf16, cast to fp32 for their reduction when the block is done, and shards
of what was reduced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_activations import (
    latent_bytes,
    made_by_backward,
    saved_by_block,
    saved_by_embedders,
    saved_by_heads,
    text_bytes,
    tokens_here,
)
from pretrain.model.plan_setup import Setup
from pretrain.model.plan_sizes import (
    BF16,
    FP32,
    adapter_blocks,
    adapter_moments,
    base_sizes,
    model_moments,
    sizes_of,
)

# Copies of a micro-batch's latents, fp32
NOISED_AND_TARGET = 2
VELOCITY = 1  # held until the backward pass is over
# velocity, its error, the gradient of its square, and what squaring's backward pass makes: x, 2 x, the answer
SQUARED_ERROR = 6
# of nft, beside the clips as they came: those with unscored ones zeroed, noise, state, three velocities, the
# two implied ones, their two errors, and the last error in fp64 with its absolute values
NFT_LOSS = 14


def training(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Bytes of the moment at which most is held, by part."""
    return max(_Step(args, clip, setup).moments(), key=lambda parts: sum(parts.values()))


def gathered_base(args: ModelArgs, setup: Setup) -> float:
    """Bytes of weights that are gathered: a block in use and one prefetched, embedders and heads throughout;
    without `reshard` all blocks.

    fp32 shards come in bf16, but for the time path; adapters of the blocks with their block.
    """
    adapters = [BF16 * setup.adapters * each for each in adapter_blocks(args, setup.rank)]
    if setup.base == "fp32":
        sizes = sizes_of(args)
        root, blocks = BF16 * sizes.root + FP32 * sizes.time, [BF16 * each for each in sizes.blocks]
    else:
        base = base_sizes(args, setup.base)
        root, blocks = base.root, list(base.blocks)
    units = [block + adapter for block, adapter in zip(blocks, adapters, strict=True)]
    all_stay = setup.on_cpu or setup.one_unit or not setup.reshard
    return float(root + (sum(units) if all_stay else min(2 * max(units), sum(units))))


@dataclass(frozen=True)
class _Step:
    args: ModelArgs
    clip: ClipShape
    setup: Setup

    def moments(self) -> Iterator[dict[str, float]]:
        """Parts at the loss, within each block's backward pass, at its reduction, and at the root's."""
        units, inputs = self._units, self._waiting
        kept, inside = self._kept
        at_loss = self._copies(in_loss=True)
        heads = saved_by_heads(self.args, self._tokens, trained=not self._rank)
        yield self._parts(len(units), kept=len(units) * kept, ends=heads, latents=at_loss)
        backward = made_by_backward(self.args, self._tokens, self._rank, self.setup.base)
        latents = self._copies(in_loss=False)
        for block, unit in enumerate(units):
            before = block * kept
            if self.setup.checkpointing == "none":
                here = {"kept": before + inside, "recomputed": 0.0}
            else:
                here = {"kept": before + inputs, "recomputed": inside + self._exchanged}
            left, gradients = self._after(block)
            yield self._parts(left, **here, backward=backward, gathered=gradients, latents=latents)
            if not self.setup.one_unit:
                yield self._parts(left, kept=before, gathered=self._reduction(unit), latents=latents)
        if self.setup.one_unit:
            yield self._parts(len(units), gathered=self._reduction(sum(units)), latents=latents)
        if self.setup.work == "train":
            root = self._reduction(sizes_of(self.args).root)
            yield self._parts(0, gathered=root, latents=latents)

    @cached_property
    def _rank(self) -> int:
        return self.setup.rank if self.setup.adapters else 0

    @cached_property
    def _units(self) -> tuple[int, ...]:
        """Trained parameters of each block."""
        if self.setup.work == "train":
            return sizes_of(self.args).blocks
        return adapter_blocks(self.args, self.setup.rank)

    @cached_property
    def _trained(self) -> int:
        return sizes_of(self.args).total if self.setup.work == "train" else sum(self._units)

    @cached_property
    def _optimizer(self) -> float:
        """Bytes of the moments of what is trained, over all shards."""
        if self.setup.work == "train":
            return model_moments(self.args, self.setup.moments)
        return adapter_moments(self.args, self.setup.rank, self.setup.moments)

    @cached_property
    def _ffn_trained(self) -> int:
        width, ffn = self.args.width, self.args.ffn_width
        return 2 * self._rank * (width + ffn) if self._rank else 2 * width * ffn

    @cached_property
    def _tokens(self) -> float:
        return tokens_here(self.clip, self.setup)

    @cached_property
    def _waiting(self) -> float:
        """Bytes of a block's input."""
        return self._tokens * self.args.width * BF16

    @cached_property
    def _exchanged(self) -> float:
        """Bytes that selective checkpointing keeps beside a block's input and its backward pass makes again.

        The attended; where ranks exchange tokens for heads, what they sent each other (q, k, v and back).
        """
        if self.setup.checkpointing != "selective":
            return 0.0
        return 0.0 if self.setup.context == 1 else 4 * self._waiting

    @cached_property
    def _kept(self) -> tuple[float, float]:
        """Bytes that a block keeps until its backward pass, and those it has within it."""
        states = self.clip.context * self.setup.local_batch
        inside = saved_by_block(self.args, self._tokens, states, self._rank)
        attended = self._waiting + self._exchanged
        kept = {"none": inside, "selective": self._waiting + attended, "full": self._waiting}
        return kept[self.setup.checkpointing], inside

    def _after(self, block: int) -> tuple[int, float]:
        """Blocks that are not reduced in a block's backward pass, and bytes of the whole gradients beside it.

        Those of the unit before in fp32, which go when this one's are cast, or in bf16 where it is one unit;
        and of the block those of its FFN.
        """
        if self.setup.one_unit:
            return len(self._units), float(BF16 * (sum(self._units[block + 1 :]) + self._ffn_trained))
        return block + 1, float(FP32 * sum(self._units[block + 1 : block + 2]) + BF16 * self._ffn_trained)

    def _reduction(self, parameters: int) -> float:
        """Bytes of a unit's gradients at their reduction: cast to fp32, before that in bf16 too, after it its
        shards."""
        return FP32 * parameters + max(BF16 * parameters, FP32 * parameters / self.setup.shards)

    def _copies(self, in_loss: bool) -> float:
        """Copies of a micro-batch's latents on this GPU."""
        waiting, setup = float(self._batches), self.setup
        if setup.work == "align":
            return waiting + (NFT_LOSS if in_loss else 0)
        return NOISED_AND_TARGET * waiting + (SQUARED_ERROR if in_loss else VELOCITY)

    @cached_property
    def _batches(self) -> int:
        """Micro-batches that are on this GPU: of an alignment one, and on a CPU all of a step, cut from the
        round's and then from the step's clips."""
        if self.setup.work != "align":
            return self.setup.micro_batches
        return 2 * self.setup.micro_batches if self.setup.on_cpu else 1

    def _gradients(self, left: int) -> float:
        """Bytes of gradients that live while those of the first `left` blocks are not reduced.

        From the second micro-batch on those of the one before are there: shards, and in alignment, which
        reduces once a step, whole ones in fp32.
        """
        shard = FP32 / self.setup.shards
        if self.setup.micro_batches == 1:
            return shard * sum(self._units[left:])
        if self.setup.work == "align":
            return FP32 * sum(self._units[:left]) + shard * sum(self._units[left:])
        return shard * self._trained

    def _parts(
        self,
        left: int,
        *,
        kept: float = 0.0,
        recomputed: float = 0.0,
        backward: float = 0.0,
        gathered: float = 0.0,
        ends: float = 0.0,
        latents: float,
    ) -> dict[str, float]:
        args, setup, batch = self.args, self.setup, self.setup.local_batch
        shard = FP32 / setup.shards
        adapters = shard * setup.adapters * sum(self._units)
        ends += self._batches * text_bytes(args, self.clip, batch)
        ends += saved_by_embedders(args, self.clip, batch, trained=not self._rank)
        return {
            "parameters": base_sizes(args, setup.base).total / setup.shards,
            **({"adapters": adapters} if setup.adapters else {}),
            "gradients": self._gradients(left),
            "optimizer": self._optimizer / setup.shards,
            "ema": shard * self._trained if setup.ema else 0.0,
            "gathered_parameters": gathered_base(args, setup),
            "gathered_gradients": gathered,
            "activations_kept": kept,
            "activations_recomputed": recomputed,
            "activations_gradients": backward,
            "embedders_and_heads": ends,
            "latents": latents * latent_bytes(args, self.clip, batch),
        }
