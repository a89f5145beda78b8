"""Randomness belongs to the sample, never to the rank: 1, 2 or 128 ranks draw the same numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stable_hash(*parts: object) -> int:
    """63-bit hash of the parts' text, equal on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """CPU generator seeded by e.g. (seed, sample_id, epoch, "noise")."""
    import torch  # late: hashing does not need it

    return torch.Generator().manual_seed(stable_hash(*parts))
