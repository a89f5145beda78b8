"""What to do where a GPU has no room for a model or a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pretrain.clip_kind import ClipKind
from pretrain.generation.config import GenerateConfig
from pretrain.generation.held import weight_bytes
from pretrain.model.args import ModelArgs

GIB = 2**30


@contextmanager
def no_room(
    args: ModelArgs | None, config: GenerateConfig, batch: int = 0, kind: ClipKind | None = None
) -> Iterator[None]:
    """Turns a GPU's lack of memory into a ValueError that says what would fit. batch: clips, 0 = loading."""
    try:
        yield
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info()
        torch.cuda.empty_cache()
        raise ValueError(advice(args, config, batch, kind, free, total)) from None


def advice(
    args: ModelArgs | None, config: GenerateConfig, batch: int, kind: ClipKind | None, free: int, total: int
) -> str:
    """The line for a GPU of `total` bytes, of which `free` are left."""
    has = f"the GPU has {total / GIB:,.1f} GiB, of which {free / GIB:,.1f} are free"
    weights = f"the weights take {weight_bytes(args, config) / GIB:,.1f} GiB" if args else ""
    if not batch:
        ways = [] if config.bf16 else ["set generate.bf16=true, which halves them"]
        if not config.quantisation:
            ways.append("set generate.quantisation=int8 (or fp8, nf4)")
        if args:
            ranks = max(2, -(-int(1.25 * weight_bytes(args, config)) // max(total, 1)))
            ways.append(f"spread them over {ranks} GPUs: --nproc {ranks} --shard")
        return f"no room for the model: {weights}, {has}; {' or '.join(ways) or 'take a larger GPU'}"
    asked = f"{batch} clips of {kind}" if batch > 1 else f"a clip of {kind}"
    ways = [f"set generate.batch_size={batch // 2} (now {config.batch_size})"] if batch > 1 else []
    ways += ["split a clip over GPUs with --nproc 2 --context 2"] if batch == 1 else []
    ways += ["spread the weights with --nproc 2 --shard", "ask for fewer frames or pixels"]
    return f"no room to make {asked}: {has}{f', {weights}' if weights else ''}; {', '.join(ways)}"
