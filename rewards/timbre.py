"""Timbre by Resemblyzer (its weights are in the wheel): similarity to a reference voice and the nearest of known voices."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rewards.base import Unscorable, score_prepared
from rewards.sound import span_sounds
from rewards.types import Clip, Score

EMBEDDING_DIM = 256
WINDOW, HOP, NUM_MELS = 400, 160, 40
PARTIAL_FRAMES = 160  # 1.6 s
PARTIAL_STEP = 77  # frames between partials: 1.3 of them a second
MIN_COVERAGE = 0.75  # of the last partial
LOUDNESS_DB = -30.0
BATCH = 256


class ResemblyzerEncoder:
    """Resemblyzer 0.1.4's voice encoder, many sounds in one forward pass; equals its `embed_utterance` on the same samples.

    Its own preprocessing is replaced by bringing the loudness to -30 dBFS: the voice activity detector of the wheel cuts
    vocoded one-second clips apart, and cost 2 points of nearest-voice accuracy on them.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec("resemblyzer")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("resemblyzer is not installed; pip install --no-deps resemblyzer")
        # Importing the package would import librosa and numba (seconds); only its weights are needed.
        weights = Path(spec.submodule_search_locations[0]) / "pretrained.pt"
        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self._lstm = nn.LSTM(NUM_MELS, EMBEDDING_DIM, 3, batch_first=True)
        self._linear = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
        self._lstm.load_state_dict({key[5:]: value for key, value in state.items() if key.startswith("lstm.")})
        self._linear.load_state_dict({key[7:]: value for key, value in state.items() if key.startswith("linear.")})

        self._known: dict[bytes, np.ndarray] = {}

    @torch.inference_mode()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """16 kHz mono sounds [N] (any lengths) -> float32 [B, 256] of unit length, entries >= 0."""
        if not waveforms:
            return np.zeros((0, EMBEDDING_DIM), np.float32)
        partials = [_partials(np.asarray(waveform, np.float32)) for waveform in waveforms]
        outputs = torch.cat([self._forward(chunk) for chunk in torch.cat(partials).split(BATCH)])
        means = [part.mean(dim=0) for part in outputs.split([len(part) for part in partials])]
        return nn.functional.normalize(torch.stack(means), dim=1).numpy()

    def embed_voices(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """`embed` at -30 dBFS, as Resemblyzer was trained; a sound that was seen before is not embedded again."""
        keys = [hashlib.blake2b(waveform.tobytes(), digest_size=16).digest() for waveform in waveforms]
        new = {key: _to_loudness(waveform) for key, waveform in zip(keys, waveforms, strict=True) if key not in self._known}
        self._known.update(zip(new, self.embed(list(new.values())), strict=True))
        return np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, EMBEDDING_DIM), np.float32)

    def _forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self._lstm(mels)
        return nn.functional.normalize(torch.relu(self._linear(hidden[-1])), dim=1)


class TimbreSimilarity:
    """Cosine between a clip's voice and its reference's, mean over the spans that have a reference; higher is better.

    A clip with several spans is cut at its longest pauses. NaN with a reason without reference or usable sound.
    """

    name = "sim_resemblyzer"

    def __init__(self, encoder: ResemblyzerEncoder) -> None:
        self.encoder = encoder

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, _prepare_pairs, self._score)

    def _score(self, prepared: list[list[tuple[np.ndarray, np.ndarray]]]) -> list[Score]:
        spoken = self.encoder.embed_voices([sound for pairs in prepared for sound, _ in pairs])
        wanted = self.encoder.embed_voices([reference for pairs in prepared for _, reference in pairs])
        cosines = iter((spoken * wanted).sum(axis=1).tolist())
        scores = []
        for pairs in prepared:
            values = [next(cosines) for _ in pairs]
            scores.append(Score(value=float(np.mean(values)), parts={f"span_{i}": value for i, value in enumerate(values)}))
        return scores


@dataclass(frozen=True)
class VoiceBank:
    """Embeddings of real utterances with their speakers; a voice is the mean of its utterances."""

    voices: tuple[str, ...]  # the speaker of each utterance
    names: tuple[str, ...]  # the utterance's own name, so that it can be left out
    embeddings: np.ndarray  # float32 [M, 256]

    def nearest(self, embeddings: np.ndarray, leave_out: Sequence[str | None] | None = None) -> list[str]:
        """The voice with the largest cosine to each of [B, 256]; `leave_out` names the utterance not to compare with."""
        known = sorted(set(self.voices))
        sums = np.stack([self.embeddings[[voice == other for other in self.voices]].sum(axis=0) for voice in known])
        index = {name: i for i, name in enumerate(self.names)}
        answers = []
        for embedding, name in zip(embeddings, leave_out or [None] * len(embeddings), strict=True):
            centroids = sums.copy()
            if name is not None and name in index:
                centroids[known.index(self.voices[index[name]])] -= self.embeddings[index[name]]
            lengths = np.maximum(np.linalg.norm(centroids, axis=1), 1e-12)
            answers.append(known[int(np.argmax(centroids @ embedding / lengths))])
        return answers


class NearestVoice:
    """Share of a clip's spans in whose sound the wanted voice is the nearest of the bank's; higher is better.

    Score.text names the nearest voice of each span. The clip's own entry in the bank (same name) is left out.
    """

    name = "voice_accuracy_resemblyzer"

    def __init__(self, encoder: ResemblyzerEncoder, bank: VoiceBank) -> None:
        self.encoder, self.bank = encoder, bank

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """NaN with a reason when the wanted voice is not told, not in the bank, or nothing can be heard."""
        return score_prepared(clips, self._prepare, self._score)

    def _prepare(self, clip: Clip) -> tuple[Clip, list[np.ndarray]]:
        if unknown := set(clip.voices) - set(self.bank.voices):
            raise Unscorable(f"voices {sorted(unknown)} are not in the bank")
        if len(clip.voices) != max(1, len(clip.spans)):
            raise Unscorable(f"{len(clip.voices)} voices for {len(clip.spans)} spans")
        return clip, span_sounds(clip)

    def _score(self, prepared: list[tuple[Clip, list[np.ndarray]]]) -> list[Score]:
        names = [clip.name for clip, sounds in prepared for _ in sounds]
        nearest = iter(self.bank.nearest(self.encoder.embed_voices([sound for _, sounds in prepared for sound in sounds]), names))
        scores = []
        for clip, sounds in prepared:
            heard = [next(nearest) for _ in sounds]
            right = sum(one == other for one, other in zip(heard, clip.voices, strict=True))
            scores.append(Score(value=right / len(heard), text=" ".join(heard)))
        return scores


def _prepare_pairs(clip: Clip) -> list[tuple[np.ndarray, np.ndarray]]:
    if all(reference is None for reference in clip.references):
        raise Unscorable("no reference voice")
    sounds = span_sounds(clip)
    return [(sound, reference) for sound, reference in zip(sounds, clip.references, strict=False) if reference is not None]


def _to_loudness(waveform: np.ndarray) -> np.ndarray:
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
    spectrum = torch.stft(padded, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True)
    mels = (_mel_filters() @ spectrum.abs().square()).T
    return torch.stack([mels[start : start + PARTIAL_FRAMES] for start in starts])


@cache
def _mel_filters() -> Tensor:
    """Triangular filters on Slaney's mel scale, each of unit area, 0 to 8 kHz: [40, 201] (what librosa makes by default)."""
    top, knee, slope = 8000.0, 1000.0, 200.0 / 3
    log_step = np.log(6.4) / 27
    mels = np.linspace(0.0, knee / slope + np.log(top / knee) / log_step, NUM_MELS + 2)
    edges = np.where(mels < knee / slope, mels * slope, knee * np.exp(log_step * (mels - knee / slope)))
    frequencies = np.linspace(0.0, top, WINDOW // 2 + 1)
    widths = np.diff(edges)
    rising = (frequencies[None] - edges[:-2, None]) / widths[:-1, None]
    falling = (edges[2:, None] - frequencies[None]) / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles.astype(np.float32))
