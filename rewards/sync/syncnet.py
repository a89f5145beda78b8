"""SyncNet (Chung and Zisserman 2016): embeds 5 mouth frames and 0.2 s of sound into one space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.sync.layers import MINI, PUBLISHED, Conv, Layer, SyncNetArgs, from_plain, plain
from rewards.sync.windows import WINDOW_COLUMNS, WINDOW_FRAMES

__all__ = ["MINI", "PUBLISHED", "SyncNet", "SyncNetArgs", "load_published", "load_syncnet", "save_syncnet"]

WEIGHTS, CONFIG, FORMAT = "weights.safetensors", "config.json", "syncnet-1"
COUNTER = "num_batches_tracked"  # not in the published file, and without meaning outside of training


class WindowConv(nn.Conv3d):
    """A 3-D convolution that spans all frames of a window, computed as a 2-D one with frames as channels.

    Takes [M, C * frames, H, W] (frames of a channel side by side); 2-D convolutions are the fast ones on a
    CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        _, rows, columns = self.stride
        _, above, left = (int(padding) for padding in self.padding)
        return F.conv2d(input, self.weight.flatten(1, 2), self.bias, (rows, columns), (above, left))


class SyncNet(nn.Module):
    """Both towers, with the published parameter names netcnnaud, netcnnlip, netfcaud, netfclip.

    `provenance` records the source of the weights and is saved with them.
    """

    def __init__(self, args: SyncNetArgs, provenance: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.args = args
        self.provenance = dict(provenance or {})
        self.netcnnaud = _tower(args.sound, 1, over_frames=False)
        self.netcnnlip = _tower(args.lips, 3, over_frames=True)
        self.netfcaud = _head(args.sound, args.embedding)
        self.netfclip = _head(args.lips, args.embedding)

    def embed_lips(self, frames: Tensor) -> Tensor:
        """Embeddings [B, T - 4, D] of all windows of 5 frames of RGB crops, float [B, 3, T, S, S] in 0..255.

        Raises ValueError for another shape or fewer than 5 frames.
        """
        size = self.args.image_size
        if (
            frames.ndim != 5
            or frames.shape[1] != 3
            or frames.shape[2] < WINDOW_FRAMES
            or frames.shape[3:] != (size, size)
        ):
            raise ValueError(
                f"embed_lips wants [B, 3, T >= {WINDOW_FRAMES}, {size}, {size}], got {list(frames.shape)}"
            )
        if self.args.channel_order == "bgr":
            frames = frames.flip(1)
        frames = (frames - self.args.pixel_mean) * self.args.pixel_scale
        windows = frames.unfold(2, WINDOW_FRAMES, 1).permute(0, 2, 1, 5, 3, 4)  # [B, n, 3, 5, S, S]
        stacked = windows.reshape(-1, 3 * WINDOW_FRAMES, size, size).contiguous(
            memory_format=torch.channels_last
        )
        return self.netfclip(self.netcnnlip(stacked).flatten(1)).unflatten(0, windows.shape[:2])

    def embed_sound(self, windows: Tensor) -> Tensor:
        """Embeddings [M, D] of windows of MFCC columns, float [M, 1, 13, 20]. Raises ValueError for another
        shape."""
        if windows.ndim != 4 or windows.shape[1:] != (1, 13, WINDOW_COLUMNS):
            raise ValueError(f"embed_sound wants [M, 1, 13, {WINDOW_COLUMNS}], got {list(windows.shape)}")
        # pooling is ten times slower otherwise
        channels_last = windows[:, 0, :, :, None].contiguous().permute(0, 3, 1, 2)
        return self.netfcaud(self.netcnnaud(channels_last * self.args.sound_scale).flatten(1))


def load_published(path: Path, sha256: str = "") -> SyncNet:
    """The published network from its own file, `syncnet_v2.model`, in eval mode.

    Raises FileNotFoundError, or ValueError in one line for another digest, an unreadable file, and names or
    shapes that differ.
    """
    from rewards.weights import checked

    path = checked(
        path,
        sha256,
        what="SyncNet",
        licence="MIT (code; the weights carry no text of their own)",
        source="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
    )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign pickle raises nearly anything
        raise ValueError(
            f"{path}: not a file of tensors ({str(error).splitlines()[0]}); fetch syncnet_v2.model again"
        ) from None
    net = SyncNet(PUBLISHED, {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    return _filled(net, tensors, f"{path}")


def save_syncnet(net: SyncNet, folder: Path) -> None:
    """Write weights.safetensors and config.json (arguments, provenance, digest) into `folder`."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = save(
        {name: tensor.contiguous() for name, tensor in net.state_dict().items() if not name.endswith(COUNTER)}
    )
    config = {
        "format": FORMAT,
        "args": plain(net.args),
        "provenance": net.provenance,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_syncnet(folder: Path) -> SyncNet:
    """What `save_syncnet` wrote, in eval mode. Raises FileNotFoundError and ValueError, each in one line."""
    from safetensors.torch import load

    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder}: no {missing[0]}; this folder is not a trained SyncNet")
    where = f"{folder / CONFIG}"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); train or copy the network anew") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{where}: format is not {FORMAT}; train or copy the network anew")
    weights = (folder / WEIGHTS).read_bytes()
    if (digest := hashlib.sha256(weights).hexdigest()) != config.get("sha256"):
        raise ValueError(
            f"{folder / WEIGHTS}: sha256 {digest}, {CONFIG} says {config.get('sha256')}; copy the folder anew"
        )
    net = SyncNet(from_plain(config.get("args", {}), where), config.get("provenance"))
    return _filled(net, load(weights), f"{folder / WEIGHTS}")


def _filled(net: SyncNet, tensors: object, where: str) -> SyncNet:
    """Load `tensors` into `net`, in eval mode.

    Names and shapes must match, except the counters of batches.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{where}: not a mapping of names to tensors; a SyncNet's state_dict is wanted")
    wanted = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith(COUNTER)}
    given = {str(name): tensor for name, tensor in tensors.items() if not str(name).endswith(COUNTER)}
    for word, names in (("missing", wanted.keys() - given.keys()), ("unknown", given.keys() - wanted.keys())):
        if names:
            raise ValueError(
                f"{where}: {len(names)} {word} names, as {min(names)}; this is no {net.args.name} SyncNet"
            )
    for name, own in wanted.items():
        if (tensor := given[name]).shape != own.shape:
            raise ValueError(
                f"{where}: {name} is {list(tensor.shape)}, the {net.args.name} SyncNet has {list(own.shape)}"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{where}: {name} is {tensor.dtype} or not finite; floats are wanted")
    net.load_state_dict(given, strict=False)
    return net.eval()


def _tower(table: Sequence[Layer], channels: int, over_frames: bool) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in table:
        if isinstance(layer, Conv):
            modules += [
                _conv(layer, channels, over_frames),
                nn.BatchNorm2d(layer.channels),
                nn.ReLU(inplace=True),
            ]
            channels = layer.channels
        else:
            modules.append(nn.MaxPool2d(layer.kernel, layer.stride, layer.padding))
    return nn.Sequential(*modules)


def _conv(layer: Conv, channels: int, over_frames: bool) -> nn.Module:
    if not over_frames:
        return nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding)
    kernel, stride, padding = (layer.frames, *layer.kernel), (1, *layer.stride), (0, *layer.padding)
    return WindowConv(channels, layer.channels, kernel, stride, padding)


def _head(table: Sequence[Layer], embedding: int) -> nn.Sequential:
    width = [layer.channels for layer in table if isinstance(layer, Conv)][-1]
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, embedding)
    )
