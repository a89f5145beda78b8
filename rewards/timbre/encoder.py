"""The voice encoder interface, an embedding cache, and batching without padding."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

MAX_KNOWN = 8192  # embeddings; 8 MB at 256 dimensions
MAX_SECONDS = 60  # of sound in one pass


class VoiceEncoder(Protocol):
    """Sounds to voices; metrics end in `name`."""

    name: str

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """16 kHz mono float sounds [N] of any lengths -> float32 [B, D] of unit length. A sound's answer does
        not depend on others."""
        ...


class EmbeddingCache:
    """Least-recently-used cache, keyed by content, around `compute` (sounds -> [B, D]).

    An encoder that several scorers share thus embeds a clip and a reference once.
    """

    def __init__(
        self, compute: Callable[[Sequence[np.ndarray]], np.ndarray], dim: int, max_known: int = MAX_KNOWN
    ) -> None:
        self._compute, self._dim, self._max_known = compute, dim, max_known
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, D], in the order of the sounds."""
        if not waveforms:
            return np.zeros((0, self._dim), np.float32)
        sounds = [np.ascontiguousarray(waveform, np.float32) for waveform in waveforms]
        keys = [hashlib.blake2b(sound.tobytes(), digest_size=16).digest() for sound in sounds]
        unknown = {key: sound for key, sound in zip(keys, sounds, strict=True) if key not in self._known}
        if unknown:
            self._known.update(zip(unknown, self._compute(list(unknown.values())), strict=True))
        for key in keys:
            self._known.move_to_end(key)
        embeddings = np.stack([self._known[key] for key in keys])
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)
        return embeddings


@torch.inference_mode()
def by_length(net: nn.Module, waveforms: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Apply `net` ([B, N] -> [B, D]) to sounds of any lengths, batched by length: unit float32 [B, D].

    Padding would change statistics over time, so nothing is padded.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, waveform in enumerate(waveforms):
        groups[len(waveform)].append(index)
    answers: dict[int, np.ndarray] = {}
    for length, indices in groups.items():
        size = max(1, MAX_SECONDS * 16_000 // length)
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            sounds = torch.from_numpy(np.stack([np.asarray(waveforms[i], np.float32) for i in batch])).to(
                device
            )
            answers.update(zip(batch, nn.functional.normalize(net(sounds), dim=1).cpu().numpy(), strict=True))
    return np.stack([answers[index] for index in range(len(waveforms))])
