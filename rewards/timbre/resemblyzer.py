"""Resemblyzer's voice encoder: its weights are in the wheel, so it needs no download. A proxy, not the
paper's SIM."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rewards.timbre.encoder import EmbeddingCache
from rewards.timbre.silence import without_silence
from rewards.weights import checked

SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"  # of resemblyzer 0.1.4
EMBEDDING_DIM = 256
WINDOW, HOP, NUM_MELS = 400, 160, 40
PARTIAL_FRAMES = 160  # 1.6 s
PARTIAL_STEP = 77  # frames between partials: 1.3 of them a second
MIN_COVERAGE = 0.75  # of the last partial
LOUDNESS_DB = -30.0
BATCH = 256


class ResemblyzerEncoder:
    """Resemblyzer 0.1.4's voice encoder, batched; equals its `embed_utterance` on the same samples.

    Its own preprocessing is replaced by taking out long silence and bringing the loudness to -30 dBFS: the
    voice activity detector of the wheel cuts vocoded one-second clips apart, and cost 2 points of
    nearest-voice accuracy on them. Entries are >= 0, so cosines lie in 0..1. Raises ImportError without the
    wheel and ValueError for other weights in it.
    """

    name = "resemblyzer"

    def __init__(self) -> None:
        spec = importlib.util.find_spec("resemblyzer")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("resemblyzer is not installed; pip install --no-deps resemblyzer")
        # Importing the package would import librosa and numba (seconds); only its weights are needed.
        weights = Path(spec.submodule_search_locations[0]) / "pretrained.pt"
        checked(
            weights, SHA256, what="Resemblyzer", licence="Apache-2.0", source="the wheel resemblyzer==0.1.4"
        )
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self._lstm = nn.LSTM(NUM_MELS, EMBEDDING_DIM, 3, batch_first=True)
        self._linear = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
        self._lstm.load_state_dict(
            {key[5:]: value for key, value in state.items() if key.startswith("lstm.")}
        )
        self._linear.load_state_dict(
            {key[7:]: value for key, value in state.items() if key.startswith("linear.")}
        )
        self._cached = EmbeddingCache(
            lambda sounds: self.embed_as_they_are([_prepared(sound) for sound in sounds]), EMBEDDING_DIM
        )

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """16 kHz mono sounds [N] of any lengths -> float32 [B, 256] of unit length, cached by content.

        Long silence is taken out first (`silence.without_silence`), the rest is scaled to -30 dBFS.
        """
        return self._cached(waveforms)

    @torch.inference_mode()
    def embed_as_they_are(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """`embed` at the sounds' own loudness, without the cache."""
        if not waveforms:
            return np.zeros((0, EMBEDDING_DIM), np.float32)
        partials = [_partials(np.asarray(waveform, np.float32)) for waveform in waveforms]
        outputs = torch.cat([self._forward(chunk) for chunk in torch.cat(partials).split(BATCH)])
        means = [part.mean(dim=0) for part in outputs.split([len(part) for part in partials])]
        return nn.functional.normalize(torch.stack(means), dim=1).numpy()

    def _forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self._lstm(mels)
        return nn.functional.normalize(torch.relu(self._linear(hidden[-1])), dim=1)


def _prepared(waveform: np.ndarray) -> np.ndarray:
    waveform = without_silence(waveform)
    level = np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))
    return (waveform * (10 ** (LOUDNESS_DB / 20) / max(level, 1e-9))).astype(np.float32)


def _partials(waveform: np.ndarray) -> Tensor:
    """Overlapping 1.6 s pieces of the power mel spectrogram, [P, 160, 40]; the end is padded with silence."""
    num_frames = -(-(len(waveform) + 1) // HOP)
    starts = list(range(0, max(1, num_frames - PARTIAL_FRAMES + PARTIAL_STEP + 1), PARTIAL_STEP))
    if len(starts) > 1 and (len(waveform) - starts[-1] * HOP) / (PARTIAL_FRAMES * HOP) < MIN_COVERAGE:
        starts.pop()
    needed = (starts[-1] + PARTIAL_FRAMES) * HOP
    padded = torch.from_numpy(np.pad(waveform, (0, max(0, needed - len(waveform)))))
    spectrum = torch.stft(
        padded, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True
    )
    mels = (_mel_filters() @ spectrum.abs().square()).T
    return torch.stack([mels[start : start + PARTIAL_FRAMES] for start in starts])


@cache
def _mel_filters() -> Tensor:
    """Triangular filters on Slaney's mel scale, each of unit area, 0 to 8 kHz: [40, 201]."""
    from transformers.audio_utils import mel_filter_bank  # slow to import

    filters = mel_filter_bank(
        WINDOW // 2 + 1, NUM_MELS, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters.T.astype(np.float32, order="C"))
