"""Ranks that hold one model together: its weights in shards (FSDP2), a clip's tokens in parts, or both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from pretrain.clip_kind import ClipKind, kind_of
from pretrain.generation.config import device_of
from pretrain.generation.held import lowered, quantised
from pretrain.generation.order import ClipOrder
from pretrain.model.args import ModelArgs
from pretrain.model.context_parallel import ContextGroup, check_degree, check_split
from pretrain.model.shell import AVTransformer
from pretrain.prompt import PromptRow


@dataclass(frozen=True)
class Seat:
    """A rank's place in its team of `size`. Ranks of one lane hold the tokens of the same clips."""

    rank: int = 0
    size: int = 1
    context: int = 1  # ranks of a lane
    shard: bool = False  # weights are spread over the team
    port: int = 0  # of the team's rendezvous on this machine

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def lane(self) -> int:
        return self.rank // self.context

    @property
    def lanes(self) -> int:
        return self.size // self.context

    @property
    def writes(self) -> bool:
        """Of the ranks of a lane, which all have the clips, the first writes them."""
        return self.rank % self.context == 0


def seated(seat: Seat, order: ClipOrder) -> Callable[[AVTransformer], AVTransformer]:
    """Joins the team; returns what puts a loaded model where it computes, in its precision."""
    os.environ |= {
        "RANK": str(seat.rank),
        "WORLD_SIZE": str(seat.size),
        "LOCAL_RANK": "0",  # each rank sees its own GPU only
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(seat.port),
    }

    def put(model: AVTransformer) -> AVTransformer:
        device = device_of(order.config)
        if seat.shard:
            return _sharded(model, seat, order)
        dist.init_process_group("gloo" if device.type == "cpu" else "cuda:nccl,cpu:gloo")
        model.join_context_group(ContextGroup(seat.rank, seat.size, dist.group.WORLD.group_name))  # type: ignore[union-attr]
        return lowered(model, order.config).to(device)

    return put


def _sharded(model: AVTransformer, seat: Seat, order: ClipOrder) -> AVTransformer:
    """FSDP2 by torchtitan's mesh, as in training: each rank keeps its shard of the loaded weights."""
    from pretrain.recipe import ParallelConfig
    from pretrain.titan.ranks import join, shard

    ranks = join()
    parallel = ParallelConfig(context=seat.context, activation_checkpointing="none")
    model.requires_grad_(False)
    return shard(quantised(model, order.config), ranks, order.config.bf16, parallel).to(ranks.device)


def check_team(order: ClipOrder, args: ModelArgs, context: int) -> None:
    """Raises ValueError where `context` ranks cannot share a clip that is asked for."""
    if context < 2:
        return
    check_degree(args, context)
    kinds: dict[ClipKind, PromptRow] = {}
    for batch in order.batches:
        kinds.setdefault(kind_of(batch[0].row, order.config), batch[0].row)
    for kind, row in kinds.items():
        frames, rows, columns = (0, 0, 0)
        if kind.video:
            _, frames, height, width = kind.video_shape
            rows, columns = height // args.patch_size, width // args.patch_size
        audio = kind.audio_shape(order.config.fps)[1] if kind.audio else 0
        check_split(frames, rows, columns, audio, context, f"{row.where} ({kind}) with --context {context}")
