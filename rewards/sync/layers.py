"""SyncNet's layer tables as data: the published network and a reduced one with the same towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Literal

Pair = tuple[int, int]
SOUND_SIZE = (13, 20)  # coefficients, columns of 10 ms


@dataclass(frozen=True)
class Conv:
    """Convolution, batch norm, ReLU: three places of a tower."""

    channels: int
    kernel: Pair  # height, width
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    frames: int = 1  # extent in time, without padding; above 1 only in the first layer over pictures


@dataclass(frozen=True)
class Pool:
    """Maximum: one place of a tower."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)


Layer = Conv | Pool


@dataclass(frozen=True)
class SyncNetArgs:
    """Everything that shapes a SyncNet and what it is fed with."""

    name: str
    image_size: int  # side of the square crops
    embedding: int
    sound: tuple[Layer, ...]
    lips: tuple[Layer, ...]
    channel_order: Literal["bgr", "rgb"] = "rgb"  # of the network; crops are always given as RGB
    pixel_mean: float = 0.0  # pixels 0..255 enter as (pixel - mean) * scale
    pixel_scale: float = 1.0
    sound_scale: float = 1.0  # coefficients enter times this
    log_floor: float | None = None  # smallest energy the coefficients know; None: the published front end's


PUBLISHED = SyncNetArgs(
    name="published",
    image_size=224,
    embedding=1024,
    channel_order="bgr",
    sound=(
        Conv(64, (3, 3), padding=(1, 1)),
        Pool((1, 1), (1, 1)),
        Conv(192, (3, 3), padding=(1, 1)),
        Pool((3, 3), (1, 2)),
        Conv(384, (3, 3), padding=(1, 1)),
        Conv(256, (3, 3), padding=(1, 1)),
        Conv(256, (3, 3), padding=(1, 1)),
        Pool((3, 3), (2, 2)),
        Conv(512, (5, 4)),
    ),
    lips=(
        Conv(96, (7, 7), (2, 2), frames=5),
        Pool((3, 3), (2, 2)),
        Conv(256, (5, 5), (2, 2), (1, 1)),
        Pool((3, 3), (2, 2), (1, 1)),
        Conv(256, (3, 3), padding=(1, 1)),
        Conv(256, (3, 3), padding=(1, 1)),
        Conv(256, (3, 3), padding=(1, 1)),
        Pool((3, 3), (2, 2)),
        Conv(512, (6, 6)),
    ),
)

MINI = SyncNetArgs(
    name="mini",
    image_size=32,
    embedding=128,
    pixel_mean=127.5,
    pixel_scale=1 / 64,
    sound_scale=0.1,
    log_floor=1.0,  # a white noise of one int16 step has 200: what is far below hearing looks like silence
    sound=(
        Conv(32, (3, 3), padding=(1, 1)),
        Pool((3, 3), (1, 2)),
        Conv(64, (3, 3), padding=(1, 1)),
        Pool((3, 3), (2, 2)),
        Conv(128, (5, 4)),
    ),
    lips=(
        Conv(32, (5, 5), (2, 2), (2, 2), frames=5),
        Conv(64, (3, 3), (2, 2), (1, 1)),
        Conv(128, (3, 3), (2, 2), (1, 1)),
        Conv(128, (3, 3), padding=(1, 1)),
        Conv(128, (4, 4)),
    ),
)


def window_flops(args: SyncNetArgs) -> dict[str, int]:
    """FLOPs of one window's `lips` and `sound`: two per weight and output position."""
    sizes = {"lips": (3, (args.image_size, args.image_size)), "sound": (1, SOUND_SIZE)}
    flops = {}
    for name, (channels, size) in sizes.items():
        total = 0
        for layer in getattr(args, name):
            size = tuple(
                (side + 2 * pad - kernel) // step + 1
                for side, pad, kernel, step in zip(
                    size, layer.padding, layer.kernel, layer.stride, strict=True
                )
            )
            if isinstance(layer, Conv):
                total += 2 * prod(size) * layer.channels * channels * layer.frames * prod(layer.kernel)
                channels = layer.channels
        flops[name] = total + 2 * channels * (channels + args.embedding)
    return flops


def plain(args: SyncNetArgs) -> dict[str, Any]:
    """As JSON can hold it."""
    tables = {
        name: [{"kind": type(layer).__name__.lower(), **asdict(layer)} for layer in getattr(args, name)]
        for name in ("sound", "lips")
    }
    return {**asdict(args), **tables}


def from_plain(values: Mapping[str, Any], where: str) -> SyncNetArgs:
    """The inverse of `plain`. Raises ValueError naming `where` for unknown, missing or wrong entries."""
    known = {field.name for field in fields(SyncNetArgs)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{where}: unknown keys {unknown}; known are {sorted(known)}")
    try:
        tables = {name: tuple(_layer(dict(layer)) for layer in values[name]) for name in ("sound", "lips")}
        return SyncNetArgs(**{**values, **tables})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: not the arguments of a SyncNet ({error}); train or copy the network anew"
        ) from None


def _layer(values: dict[str, Any]) -> Layer:
    kind = {"conv": Conv, "pool": Pool}[values.pop("kind")]
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
