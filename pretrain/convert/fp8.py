"""Checkpoints with weights in fp8, as published for inference, read as the fp32 weights that they stand for.

A weight is float8_e4m3fn or float8_e5m2, alone (a plain cast) or times a scale beside it: one number, or one
for each row, under `MODULE.scale_weight` (ComfyUI) or `MODULE.weight_scale` (diffusers, LTX). What concerns
products in fp8 alone is left out: scales of inputs, and marks of the format.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from pretrain.model.shards import DTYPES, ShardReader

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_OF_PRODUCTS = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Fp8Reader(ShardReader):
    """A checkpoint in which fp8 weights appear in fp32; one without any is as `ShardReader` reads it.

    Raises as that does, and ValueError where a weight has two scales, or one that is neither a number nor one
    for each row. Scales of other names, as of blocks, stay among the keys, which a conversion refuses.
    """

    def __init__(self, path: Path, stem: str = "") -> None:
        super().__init__(path, stem, {**DTYPES, **FP8})
        whole, stored = list(super().keys()), super().dtype
        self.eighths = {key for key in whole if stored(key) in FP8.values()}
        self.scales: dict[str, str] = {}  # weight -> its scale
        for key in self.eighths:
            if found := [name for name in _scale_names(key) if name in whole]:
                self.scales[key] = self._scale(key, found)
        beside = {key for key in whole if key.rpartition(".")[2] in _OF_PRODUCTS} if self.eighths else set()
        self._shown = [key for key in whole if key not in beside | set(self.scales.values())]

    def keys(self) -> Collection[str]:
        return self._shown

    def shapes(self) -> dict[str, torch.Size]:
        return {key: self.shape(key) for key in self._shown}

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32 if key in self.eighths else super().dtype(key)

    def tensor(self, key: str) -> Tensor:
        whole = super().tensor(key)
        if key not in self.eighths:
            return whole
        exact = whole.float()
        if key not in self.scales:
            return exact
        scale = super().tensor(self.scales[key]).float().reshape(-1)
        return exact * scale.reshape(-1, *[1] * (exact.ndim - 1))

    def _scale(self, key: str, found: list[str]) -> str:
        if len(found) > 1:
            raise ValueError(f"{self.path}: {key} has two scales, {' and '.join(found)}; keep one")
        scale, shape = found[0], self.shape(key)
        count = self.shape(scale).numel()
        if super().dtype(scale) not in _FLOATS or count not in (1, shape[0]):
            raise ValueError(
                f"{self.path}: {scale} is {super().dtype(scale)} {list(self.shape(scale))} for {key} "
                f"{list(shape)}; only one number, or one for each row, is read"
            )
        return scale


def _scale_names(key: str) -> tuple[str, str]:
    module, dot, leaf = key.rpartition(".")
    return f"{module}{dot}scale_{leaf}", f"{module}{dot}{leaf}_scale"
