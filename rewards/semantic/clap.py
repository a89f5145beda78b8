"""CLAP (LAION, arXiv 2211.06687) through transformers: audio-audio and audio-text similarity.

Results equal those of batch size 1, which Verse-Bench uses, at any batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.base import Unscorable, score_prepared
from rewards.parking import parked
from rewards.quality.frechet import verse_bench_distance
from rewards.sound import mono
from rewards.types import Clip, Score
from rewards.weights import checked

RATE_HZ = 48_000
PEAK_DB = -1.0
MAX_TOKENS = 77
BATCH = 16
LICENCE = "CC0-1.0 (checkpoint), Apache-2.0 (converted repository)"
SOURCE = "huggingface.co/laion/clap-htsat-fused"


class ClapEncoder:
    """Embeddings of unit length in the space that sounds and texts share."""

    def __init__(
        self,
        model: Any,
        extractor: Any,
        tokenizer: Any,
        seed: int = 0,
        device: str = "cpu",
        park: bool = False,
    ) -> None:
        """transformers' ClapModel (which goes to `device`), ClapFeatureExtractor and tokenizer.

        `seed` fixes the random crops of sounds over 10 s.
        """
        if extractor.sampling_rate != RATE_HZ:
            raise ValueError(
                f"CLAP's feature extractor is set to {extractor.sampling_rate} Hz, not {RATE_HZ}"
            )
        self._model, self._device = model.eval(), device
        self._parking = parked(self._model, device, park)
        self._extractor, self._tokenizer, self._seed = extractor, tokenizer, seed

    @classmethod
    def load(
        cls, folder: Path, sha256: str = "", seed: int = 0, device: str = "cpu", park: bool = False
    ) -> ClapEncoder:
        """Load a local snapshot of laion/clap-htsat-fused; nothing is downloaded.

        `sha256` is that of model.safetensors. Raises FileNotFoundError and ValueError in one line for missing
        or wrong files.
        """
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        checked(Path(folder) / "model.safetensors", sha256, what="CLAP", licence=LICENCE, source=SOURCE)
        options: list[tuple[Any, dict[str, bool]]] = [
            (ClapModel, {"output_loading_info": True}),
            (ClapFeatureExtractor, {}),
            (AutoTokenizer, {}),
        ]
        parts: list[Any] = []
        for kind, extra in options:
            try:
                parts.append(kind.from_pretrained(str(folder), local_files_only=True, **extra))
            # each of the three loaders raises its own types, with multi-line messages
            except Exception as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
                raise ValueError(
                    f"CLAP: {folder}: no {kind.__name__} in it ({first}); get the whole folder from {SOURCE}"
                ) from error
        (model, report), extractor, tokenizer = parts
        floats = {key for key, value in model.state_dict().items() if value.is_floating_point()}
        # transformers would initialise missing weights randomly
        if missing := sorted(floats & set(report["missing_keys"])):
            raise ValueError(
                f"CLAP: {folder}: {len(missing)} weights are missing, first {missing[0]}; get them from "
                f"{SOURCE}"
            )
        return cls(model, extractor, tokenizer, seed=seed, device=device, park=park)

    def working(self) -> AbstractContextManager[None]:
        """A parked network stays on its device over the calls inside."""
        return self._parking.working()

    @torch.inference_mode()
    def embed_sounds(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Mono sounds [N] at 48 kHz (any lengths) -> float32 [B, D] of unit length."""
        features = [self._features(waveform) for waveform in waveforms]
        outputs = []
        with self.working():
            for start in range(0, len(features), BATCH):
                batch = torch.cat(features[start : start + BATCH]).to(self._device)
                # The reference marks a single short sound as a long one; in a batch one would be picked at
                # random.
                longer = torch.ones(len(batch), 1, dtype=torch.bool, device=self._device)
                outputs.append(_unit(self._model.get_audio_features(input_features=batch, is_longer=longer)))
        return (
            np.concatenate(outputs)
            if outputs
            else np.zeros((0, self._model.config.projection_dim), np.float32)
        )

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts (cut after 77 tokens) -> float32 [B, D] of unit length."""
        if not texts:
            return np.zeros((0, self._model.config.projection_dim), np.float32)
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self._device)
        asked = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        with self.working():
            return _unit(self._model.get_text_features(**asked))

    def _features(self, waveform: np.ndarray) -> Tensor:
        with _numpy_seeded(self._seed):
            found = self._extractor(as_heard(waveform), sampling_rate=RATE_HZ, return_tensors="pt")
        return found["input_features"].float()


class VerseBenchDistance:
    """2 - 2 cos of the CLAP embeddings of the clip's sound and `clip.reference_sound`, 0..4; lower is better.

    Verse-Bench reports its mean as FD, though it is no distance of distributions (metrics.md 6).
    NaN with a reason without reference recording or usable sound.
    """

    name = "fd_verse_bench"

    def __init__(self, encoder: ClapEncoder) -> None:
        self.encoder = encoder

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, _sound_and_reference, self._score)

    def _score(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Score]:
        with self.encoder.working():
            made, real = (self.encoder.embed_sounds([pair[i] for pair in pairs]) for i in (0, 1))
        return [Score(value=float(distance)) for distance in verse_bench_distance(made, real)]


class TextSoundCosine:
    """Cosine of the CLAP embeddings of the clip's sound and its text prompt, -1..1; higher is better (CS).

    `text` selects the words that describe the sound (Verse-Bench: the audio prompt, without the speech). NaN
    with a reason without text or usable sound.
    """

    name = "clap_text_cosine"

    def __init__(self, encoder: ClapEncoder, text: Callable[[Clip], str] = lambda clip: clip.prompt) -> None:
        self.encoder, self.text = encoder, text

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, self._prepare, self._score)

    def _prepare(self, clip: Clip) -> tuple[np.ndarray, str]:
        if not (text := self.text(clip).strip()):
            raise Unscorable("no text to compare the sound with")
        return mono(clip, RATE_HZ), text

    def _score(self, pairs: list[tuple[np.ndarray, str]]) -> list[Score]:
        with self.encoder.working():
            sounds = self.encoder.embed_sounds([sound for sound, _ in pairs])
            texts = self.encoder.embed_texts([text for _, text in pairs])
        return [Score(value=float(cosine)) for cosine in (sounds * texts).sum(axis=1)]


def as_heard(waveform: np.ndarray) -> np.ndarray:
    """[N] -> float32 [N], peak-normalised to -1 dB and quantised to 16 bits, as CLAP's training data."""
    scaled = waveform * (10 ** (PEAK_DB / 20) / np.abs(waveform).max())
    return ((scaled * 32767.0).astype(np.int16) / 32767.0).astype(np.float32)


def _sound_and_reference(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    if clip.reference_sound is None:
        raise Unscorable("no reference recording")
    made = mono(clip, RATE_HZ)
    try:
        return made, mono(dataclasses.replace(clip, waveform=clip.reference_sound), RATE_HZ)
    except Unscorable as error:
        raise Unscorable(f"reference recording: {error}") from error


def _unit(features: Any) -> np.ndarray:
    values = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(values.float(), dim=-1).cpu().numpy()


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global state, from which the feature extractor draws crops, and restore it after.

    Every sound gets the same draw; other users of the global state are not affected.
    """
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
