"""What to do where a GPU has no room for a model, a batch, or what encodes and decodes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from pretrain.clip_kind import ClipKind
from pretrain.generation.config import GenerateConfig
from pretrain.generation.held import weight_bytes
from pretrain.model.args import ModelArgs
from pretrain.model.shortage import GIB, Shortage

CodecWork = Literal["", "encode", "decode"]  # "" = the transformer
_CODEC = {
    "encode": "to encode the prompts, first frames and voices of",
    "decode": "to decode",
}


@contextmanager
def no_room(
    args: ModelArgs | None,
    config: GenerateConfig,
    batch: int = 0,
    kind: ClipKind | None = None,
    work: CodecWork = "",
) -> Iterator[None]:
    """Turns a GPU's lack of memory into a ValueError that says what would fit. batch: clips, 0 = loading."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = Shortage.of(error)
        free, total = found.free, found.total
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            torch.cuda.empty_cache()
        raise ValueError(advice(args, config, batch, kind, free, total, work, found.asked)) from None


def advice(
    args: ModelArgs | None,
    config: GenerateConfig,
    batch: int,
    kind: ClipKind | None,
    free: int,
    total: int,
    work: CodecWork = "",
    asked: int = 0,
) -> str:
    """The line for a GPU of `total` bytes, of which `free` are left, where `asked` more were wanted (0 = it
    is not known). work: of the codec, whose networks share the GPU with the model."""
    has = f"the GPU has {total / GIB:,.1f} GiB, of which {free / GIB:,.1f} are free"
    has += f" and {asked / GIB:,.2f} more were asked for" if asked else ""
    weights = f"the weights take {weight_bytes(args, config) / GIB:,.1f} GiB" if args else ""
    if not batch:
        return _for_the_model(args, config, weights, has, total)
    of = f"{batch} clips of {kind}" if batch > 1 else f"a clip of {kind}"
    ways = [f"set generate.batch_size={batch // 2} (now {config.batch_size})"] if batch > 1 else []
    if work:
        ways += [
            "let the codec's networks wait in the host's memory while they do not work (`nava codec import "
            "... --parked`, same codec id)"
        ]
        if work == "decode":
            ways.append(
                "decode in tiles (`--decode-tile 256` there; another decoder_id, so a folder that has clips "
                "is then another one)"
            )
        if not config.quantisation:
            ways.append("make the model smaller beside them with generate.quantisation=int8 (or fp8, nf4)")
    elif batch == 1:
        ways.append("split a clip over GPUs with --nproc 2 --context 2")
    ways.append("spread the weights with --nproc 2 --shard")
    if not work:
        ways.append("let the codec wait in the host's memory (`nava codec import ... --parked`)")
    ways.append("ask for fewer frames or pixels")
    return (
        f"no room {_CODEC.get(work, 'to make')} {of}: {has}{f', {weights}' if weights else ''}; "
        f"{', '.join(ways)}"
    )


def _for_the_model(args: ModelArgs | None, config: GenerateConfig, weights: str, has: str, total: int) -> str:
    ways = [] if config.bf16 else ["set generate.bf16=true, which halves them"]
    if not config.quantisation:
        ways.append("set generate.quantisation=int8 (or fp8, nf4)")
    if args:
        ranks = max(2, -(-int(1.25 * weight_bytes(args, config)) // max(total, 1)))
        ways.append(f"spread them over {ranks} GPUs: --nproc {ranks} --shard")
    said = f"{weights}, {has}" if weights else has
    return f"no room for the model: {said}; {' or '.join(ways) or 'take a larger GPU'}"
