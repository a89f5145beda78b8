"""ReDimNet voice encoder, rebuilt from a published file: the encoder that conditions NAVA.

For training and diagnosis only: to score NAVA with the encoder it is conditioned on is circular; report
WavLM-ECAPA. Supported: files of IDRnD/ReDimNet's release `latest` (dicts with `model_config` and
`state_dict`) with mel features of the torch front end and attentive pooling; other options are refused by
name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.parking import parked
from rewards.sound import SAMPLE_RATE_HZ
from rewards.timbre.ecapa import AttentiveStatistics
from rewards.timbre.encoder import EmbeddingCache, by_length
from rewards.timbre.loading import fitted, read_weights
from rewards.timbre.redimnet_layers import (
    BLOCKS_1D,
    BLOCKS_2D,
    EPS,
    Block2d,
    ChannelNorm,
    TimeContext,
    ToPicture,
    ToSignal,
    WeightedSum,
)
from rewards.timbre.redimnet_mel import log_mel, mel_filters, mel_window
from rewards.timbre.silence import without_silence
from rewards.weights import checked

MAX_SAMPLES = 30 * SAMPLE_RATE_HZ  # as NAVA feeds it
POOLING_BOTTLENECK = 128
SOURCE = "the release `latest` of github.com/IDRnD/ReDimNet, {size}-{dataset}-{train_type}.pt"
LICENCE = "code MIT; weights trained on VoxBlink2 (vb2) reported CC BY-NC-SA 4.0"
FRONT_END = "spec.torchfbank."
# model_config keys that change nothing at inference, and those with the only value that is supported
WITHOUT_EFFECT = {"num_classes", "class_dropout", "feat_agg_dropout", "head_activation"}
FIXED: dict[str, tuple[Any, ...]] = {
    "pooling_func": ("ASTP",),
    "feat_type": ("pt", "pt_mel"),
    "return_all_outputs": (False,),
    "tf_optimized_arch": (False,),
}
SPEC_WITHOUT_EFFECT = {
    "do_spec_aug",
    "freq_mask_width",
    "time_mask_width",
    "freq_start_bin",
    "num_apply_spec_aug",
}
SPEC_FIXED: dict[str, tuple[Any, ...]] = {
    "sample_rate": (16_000,),
    "n_fft": (512,),
    "win_length": (400,),
    "f_min": (20,),
    "f_max": (7600,),
    "norm_signal": (False,),
    "do_preemph": (True,),
    "spec_norm": ("mn",),
}


@dataclass(frozen=True)
class Stage:
    """One stage of the backbone.

    `stride` merges frequencies; `blocks` 2-D blocks widen channels by `widening`; `reduction` divides the
    channels of the time block, if any.
    """

    stride: int
    blocks: int
    widening: float
    reduction: int | None


@dataclass(frozen=True)
class ReDimNetArgs:
    """Shapes, by the names of a file's model_config; the defaults are its own."""

    F: int = 72
    C: int = 16
    block_1d_type: str = "att"
    block_2d_type: str = "convnext_like"
    stages: tuple[Stage, ...] = ()
    group_divisor: int | None = 4
    out_channels: int | None = None
    embed_dim: int = 192
    hop_length: int = 160
    global_context_att: bool = False
    emb_bn: bool = False


DEFAULT_STAGES = (
    (1, 2, 1, None, 12),
    (2, 2, 1, None, 12),
    (1, 3, 1, None, 12),
    (2, 4, 1, None, 8),
    (1, 4, 1, None, 8),
    (2, 4, 1, None, 4),
)


def read_config(config: Mapping[str, Any], where: str) -> ReDimNetArgs:
    """A file's model_config. Raises ValueError in one line for an unknown key or an option that is not
    supported."""
    fields = set(ReDimNetArgs.__dataclass_fields__) - {"stages"}
    _refuse(config, fields | WITHOUT_EFFECT | {"stages_setup", "spec_params"}, FIXED, f"{where} model_config")
    _refuse(
        config.get("spec_params", {}), SPEC_WITHOUT_EFFECT, SPEC_FIXED, f"{where} model_config.spec_params"
    )
    for key, known in (("block_1d_type", BLOCKS_1D), ("block_2d_type", BLOCKS_2D)):
        if config.get(key, known[0]) not in known:
            raise ValueError(f"{where} model_config.{key}: {config[key]!r}; supported are {', '.join(known)}")
    stages = tuple(
        Stage(stride, blocks, widening, reduction)
        for stride, blocks, widening, _, reduction in config.get("stages_setup", DEFAULT_STAGES)
    )
    return ReDimNetArgs(stages=stages, **{key: config[key] for key in fields & config.keys()})


def _refuse(
    found: Mapping[str, Any], known: set[str], fixed: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    if unknown := sorted(found.keys() - known - fixed.keys()):
        raise ValueError(f"{where}.{unknown[0]}: unknown; the file is of another version than is supported")
    for key in fixed.keys() & found.keys():
        if found[key] not in fixed[key]:
            raise ValueError(f"{where}.{key}: {found[key]!r}; only {fixed[key][0]!r} is supported")


class Backbone(nn.Module):
    """Log mel [B, 1, F, T] -> signal [B, D, T]; every stage sees a weighted sum of all before it."""

    def __init__(self, args: ReDimNetArgs) -> None:
        super().__init__()
        volume = args.F * args.C
        self.stem = nn.Sequential(nn.Conv2d(1, args.C, 3, padding=1), ChannelNorm(args.C), ToSignal())
        channels, frequencies = args.C, args.F
        for index, stage in enumerate(args.stages):
            if frequencies % stage.stride:
                raise ValueError(
                    f"model_config.stages_setup: stage {index} joins {stage.stride} of {frequencies} "
                    "frequencies"
                )
            self.add_module(f"stage{index}", _stage(args, stage, index, channels, frequencies))
            channels, frequencies = channels * stage.stride, frequencies // stage.stride
        self.fin_wght1d = WeightedSum(len(args.stages) + 1, volume)
        out = args.out_channels
        self.mfa = (
            nn.Identity() if out is None else nn.Sequential(nn.Conv1d(volume, out, 1), nn.BatchNorm1d(out))
        )

    def forward(self, picture: Tensor) -> Tensor:
        signals = [self.stem(picture)]
        for name, stage in self.named_children():
            if name.startswith("stage"):
                signals.append(stage(signals))
        return self.mfa(self.fin_wght1d(signals))


def _stage(args: ReDimNetArgs, stage: Stage, index: int, channels: int, frequencies: int) -> nn.Sequential:
    volume = args.F * args.C
    joined, wide = channels * stage.stride, int(channels * stage.stride * stage.widening)
    layers: list[nn.Module] = [
        WeightedSum(index + 1, volume if index else 1),
        ToPicture(frequencies, channels),
        nn.Conv2d(channels, wide, (stage.stride, 1), stride=(stage.stride, 1)),
    ]
    groups = 0 if args.group_divisor is None else wide // args.group_divisor
    layers += [
        Block2d(args.block_2d_type, wide, frequencies // stage.stride, groups) for _ in range(stage.blocks)
    ]
    if stage.widening != 1:
        narrow = 1 if args.group_divisor is None else joined // args.group_divisor
        narrowing = nn.Conv2d(wide, joined, 3, padding=1, groups=narrow)
        layers.append(
            nn.Sequential(narrowing, nn.BatchNorm2d(joined, eps=EPS), nn.GELU(), nn.Conv2d(joined, joined, 1))
        )
    layers.append(ToSignal())
    if stage.reduction is not None:
        layers.append(TimeContext(args.block_1d_type, volume, volume // stage.reduction))
    return nn.Sequential(*layers)


class ReDimNet(nn.Module):
    """16 kHz sound [B, N] of equal length -> voice [B, embed_dim], not normalised; uses the first 30 s."""

    def __init__(self, args: ReDimNetArgs) -> None:
        super().__init__()
        self.args = args
        self.backbone = Backbone(args)
        channels = args.out_channels or args.F * args.C
        self.pool = AttentiveStatistics(
            channels, POOLING_BOTTLENECK, min_variance=1e-7, context=args.global_context_att
        )
        self.bn = nn.BatchNorm1d(2 * channels)
        self.linear = nn.Linear(2 * channels, args.embed_dim)
        self.bn2 = nn.BatchNorm1d(args.embed_dim) if args.emb_bn else nn.Identity()

    def forward(self, waveforms: Tensor) -> Tensor:
        mel = log_mel(waveforms[:, :MAX_SAMPLES], self.args.F, self.args.hop_length)
        return self.bn2(self.linear(self.bn(self.pool(self.backbone(mel[:, None])))))


class ReDimNetEncoder:
    """`VoiceEncoder` from a published file. A sound that cannot be embedded has no score; there are no zeros
    in its place.

    Raises FileNotFoundError or ValueError in one line for a missing, altered, foreign or unsupported file.
    """

    name = "redimnet"

    def __init__(self, path: Path, sha256: str = "", *, device: str = "cpu", park: bool = False) -> None:
        path = checked(path, sha256, what="ReDimNet", licence=LICENCE, source=SOURCE)
        self._net, self._device = load_net(path), device
        self._parking = parked(self._net, device, park)
        self._cached = EmbeddingCache(self._embed, self._net.args.embed_dim)

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """16 kHz mono sounds [N] -> float32 [B, 192] of unit length; remembered by content.

        Long silence is taken out first (`silence.without_silence`).
        """
        return self._cached(waveforms)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        sounds = [without_silence(sound) for sound in waveforms]
        with self._parking.working():
            return by_length(self._net, sounds, self._device)


def load_net(path: Path) -> ReDimNet:
    """The network in evaluation mode; the file's own front end must equal ours. Raises ValueError in one
    line."""
    content = read_weights(path)
    if missing := {"model_config", "state_dict"} - content.keys():
        raise ValueError(
            f"{path}: has {sorted(content)[:5]}, no {' and no '.join(sorted(missing))}; it is not from "
            f"{SOURCE}"
        )
    args = read_config(content["model_config"], str(path))
    _check_front_end(content["state_dict"], args, path)
    state = {
        name: value
        for name, value in content["state_dict"].items()
        if not name.startswith((FRONT_END, "cls_head."))
    }
    with torch.device("meta"):
        net = ReDimNet(args)
    net.load_state_dict(fitted(state, net.state_dict(), str(path)), assign=True)
    return net.eval().requires_grad_(False).float()


def _check_front_end(state: Mapping[str, Tensor], args: ReDimNetArgs, path: Path) -> None:
    """Files carry their filters; a difference would change every score."""
    ours = {
        "1.flipped_filter": torch.tensor([[[-0.97, 1.0]]]),
        "2.spectrogram.window": mel_window(),
        "2.mel_scale.fb": mel_filters(args.F).T,
    }
    for name in sorted(name for name in state if name.startswith(FRONT_END)):
        wanted = ours.get(name.removeprefix(FRONT_END))
        if (
            wanted is None
            or wanted.shape != state[name].shape
            or not torch.allclose(wanted, state[name].float(), atol=1e-4)
        ):
            raise ValueError(
                f"{path}: {name} {list(state[name].shape)} is not the front end that is supported"
            )
