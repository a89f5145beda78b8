"""Speech to text by a Whisper model in a local folder; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.options import one_line
from rewards.parking import parked
from rewards.sound import SAMPLE_RATE_HZ
from rewards.weights import checked

WINDOW_S = 30  # what the model's encoder is built for
LARGE_V3 = {
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "num_mel_bins": 128,
    "vocab_size": 51866,
}


class WhisperTranscriber:
    """Greedy transcripts of 30 s windows, joined by blanks.

    `folder` holds what `save_pretrained` of model and processor write (config.json, model.safetensors,
    tokenizer, ...). `name` is "whisper" unless given; "whisper_large_v3", the recogniser of Seed-TTS eval, is
    refused for any other shape. `language` ("en") is left to the model when empty, and not passed to a
    monolingual model. Raises FileNotFoundError or ValueError in one line for a missing, wrong or incomplete
    model.
    """

    def __init__(
        self,
        folder: Path,
        sha256: str = "",
        *,
        name: str = "whisper",
        language: str = "en",
        task: str = "transcribe",
        batch_size: int = 8,
        device: str = "cpu",
        park: bool = False,
    ) -> None:
        import torch

        folder = Path(folder)
        checked(
            folder / "model.safetensors",
            sha256,
            what=name,
            licence="MIT or Apache-2.0",
            source="huggingface.co/openai/whisper-large-v3",
        )
        self.name, self.batch_size, self.device = name, batch_size, torch.device(device)
        self.model, self.processor = _load(folder)
        shape = {key: getattr(self.model.config, key) for key in LARGE_V3}
        if name == "whisper_large_v3" and shape != LARGE_V3:
            raise ValueError(
                f"{folder / 'config.json'}: {shape} is not Whisper large v3 ({LARGE_V3}); give it another "
                "name"
            )
        self._parking = parked(self.model.eval(), device, park)
        self.options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "return_timestamps": False}
        self.language = "en"  # of the monolingual models
        if getattr(self.model.generation_config, "is_multilingual", True):
            self.language = language
            self.options |= {"task": task, **({"language": language} if language else {})}

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Texts of float32 [N] 16 kHz sounds, in order, special tokens dropped."""
        length = WINDOW_S * SAMPLE_RATE_HZ
        windows = [
            (index, sound[start : start + length])
            for index, sound in enumerate(waveforms)
            for start in range(0, len(sound), length)
        ]
        texts: list[list[str]] = [[] for _ in waveforms]
        with self._parking.working():
            for start in range(0, len(windows), self.batch_size):
                batch = windows[start : start + self.batch_size]
                for (index, _), text in zip(batch, self._decode([sound for _, sound in batch]), strict=True):
                    texts[index].append(text.strip())
        return [" ".join(filter(None, parts)) for parts in texts]

    def _decode(self, windows: list[np.ndarray]) -> list[str]:
        import torch

        inputs = self.processor(
            windows, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", return_attention_mask=True
        )
        features = inputs.input_features.to(self.device, self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(
                features, attention_mask=inputs.attention_mask.to(self.device), **self.options
            )
        return self.processor.batch_decode(tokens, skip_special_tokens=True)


def _load(folder: Path) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    try:
        # untyped: the stub lacks the second return value of output_loading_info
        load: Any = WhisperForConditionalGeneration.from_pretrained
        model, found = load(folder, local_files_only=True, output_loading_info=True)
        processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = one_line(error, 200)
        raise ValueError(
            f"{folder}: not a Whisper model with its processor ({reason}); give the folder as downloaded"
        ) from None
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder / 'model.safetensors'}: {len(missing)} tensors are missing, first {missing[0]}; get "
            "the file again"
        )
    return model, processor
