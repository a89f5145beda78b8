"""What AdamW's two moments of a parameter are held in, and their bytes."""

from __future__ import annotations

import math
from typing import Literal

import torch

MomentsFormat = Literal["fp32", "8bit"]
BLOCKS = (256, 128, 64)  # values that share a scale: the first that divides a row
SMALLEST = 4096  # values of a parameter; below, moments stay fp32, as in torchao and bitsandbytes


def block_of(shape: torch.Size) -> int:
    """Values per scale of a parameter of this (whole) shape in 8 bits; 0 = its moments are fp32.

    Rounded is what has rows, at least 4,096 values, and rows that a block divides.
    """
    row = math.prod(shape[1:]) if len(shape) > 1 else 0
    if not row or shape.numel() < SMALLEST:
        return 0
    return next((block for block in BLOCKS if row % block == 0), 0)


def moment_bytes(shape: torch.Size, held: MomentsFormat) -> float:
    """Of both moments of a parameter: fp32, or codes and a scale in fp32 for each block."""
    block = block_of(shape) if held == "8bit" else 0
    return 2 * shape.numel() * (1 + 4 / block if block else 4.0)
