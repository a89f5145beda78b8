"""Audiobox-Aesthetics (Tjandra et al. 2025, arXiv 2502.05139): production quality and three more axes, 1..10.

The model class is the PyPI package's (`pip install --no-deps audiobox_aesthetics`, version 0.0.4). Only its
module `audiobox_aesthetics.model.aes` is imported, which needs torch alone; its `infer` module would ask for
torchaudio.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewards.base import score_prepared
from rewards.parking import parked
from rewards.sound import SAMPLE_RATE_HZ, mono_16khz
from rewards.types import Clip, Score
from rewards.weights import checked

AXES = ("CE", "CU", "PC", "PQ")  # enjoyment, usefulness, complexity, production quality
WINDOW = 10 * SAMPLE_RATE_HZ
BATCH = 8  # windows
LICENCE = "CC-BY-4.0"
SOURCE = "huggingface.co/facebook/audiobox-aesthetics"
MODEL_ARGS = (
    "proj_num_layer",
    "proj_ln",
    "proj_act_fn",
    "proj_dropout",
    "nth_layer",
    "use_weighted_layer_sum",
    "precision",
    "normalize_embed",
    "output_dim",
)


class AudioboxAesthetics:
    """Production quality (PQ), about 1..10, higher is better.

    Score.parts: ce, cu (higher is better), pc (lower is better in Verse-Bench). Windows of 10 s side by side,
    the last one padded with silence under a mask; a clip's score is their mean weighted by how much of each
    is sound. NaN with a reason without usable sound. Resampling is scipy's polyphase filter where the package
    takes torchaudio's; sounds at 16 kHz are the same samples.
    """

    name = "audiobox_pq"

    def __init__(
        self,
        model: nn.Module,
        transform: Mapping[str, tuple[float, float]],
        device: str = "cpu",
        park: bool = False,
    ) -> None:
        """`model` maps {"wav", "mask"} of [B, 1, 160000] to {axis: [B]}, on `device`.

        `transform` has the mean and deviation of each axis.
        """
        self._model, self._transform, self._device = model.eval(), dict(transform), device
        self._parking = parked(self._model, device, park)

    @classmethod
    def load(
        cls, path: Path, sha256: str = "", device: str = "cpu", park: bool = False
    ) -> AudioboxAesthetics:
        """From `checkpoint.pt`, or from `model.safetensors` with its `config.json` beside it.

        Raises ImportError without the package, FileNotFoundError and ValueError in one line for missing or
        wrong weights.
        """
        if importlib.util.find_spec("audiobox_aesthetics") is None:
            raise ImportError(
                f"audiobox_aesthetics ({LICENCE}) is not installed; pip install --no-deps "
                "audiobox_aesthetics==0.0.4"
            )
        path = checked(path, sha256, what="Audiobox-Aesthetics", licence=LICENCE, source=SOURCE)
        config, state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
        return cls(_build(path, config, state), _transform(path, config), device, park)

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, mono_16khz, self._score)

    @torch.inference_mode()
    def _score(self, waveforms: list[np.ndarray]) -> list[Score]:
        pieces = [windows(waveform) for waveform in waveforms]
        sounds, masks = (torch.cat([piece[i] for piece in pieces]) for i in (0, 1))
        with self._parking.working():
            batches = [
                self._answer(sounds[i : i + BATCH], masks[i : i + BATCH])
                for i in range(0, len(sounds), BATCH)
            ]
        # one copy from the device for all axes
        found = torch.stack([torch.cat([batch[axis] for batch in batches]) for axis in AXES]).cpu().double()
        values = {
            axis: row * self._transform[axis][1] + self._transform[axis][0]
            for axis, row in zip(AXES, found, strict=True)
        }
        shares = masks.double().mean(dim=(1, 2))
        scores, start = [], 0
        for piece in pieces:
            own = slice(start, start + len(piece[0]))
            start = own.stop
            axes = {axis: float((values[axis][own] * shares[own]).sum() / shares[own].sum()) for axis in AXES}
            scores.append(
                Score(value=axes["PQ"], parts={axis.lower(): axes[axis] for axis in AXES if axis != "PQ"})
            )
        return scores

    def _answer(self, sounds: Tensor, masks: Tensor) -> Mapping[str, Tensor]:
        """{axis: [B]} of windows [B, 1, 160000], on the model's device."""
        return self._model({"wav": sounds.to(self._device), "mask": masks.to(self._device)})


def windows(waveform: np.ndarray) -> tuple[Tensor, Tensor]:
    """[N] at 16 kHz -> windows of 10 s, float32 [P, 1, 160000], zero-padded, and a bool mask of the sound."""
    padding = -len(waveform) % WINDOW
    sound = torch.from_numpy(np.pad(np.asarray(waveform, np.float32), (0, padding)))
    mask = torch.arange(len(sound)) < len(waveform)
    return sound.reshape(-1, 1, WINDOW), mask.reshape(-1, 1, WINDOW)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many exception types, with multi-line messages
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"Audiobox-Aesthetics: {path}: not readable as plain weights ({first}); use model.safetensors"
        ) from error
    missing = [
        key
        for key in ("state_dict", "model_cfg", "target_transform")
        if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise ValueError(
            f"Audiobox-Aesthetics: {path}: has no {', '.join(missing)}; get checkpoint.pt from {SOURCE}"
        )
    state = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
    return {**content["model_cfg"], "target_transform": content["target_transform"]}, state


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load_file

    config = path.with_name("config.json")
    if not config.is_file():
        raise FileNotFoundError(
            f"Audiobox-Aesthetics: {config}: no such file; it belongs beside {path.name}, get it from "
            f"{SOURCE}"
        )
    return json.loads(config.read_text()), load_file(path)


def _build(path: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    from audiobox_aesthetics.model.aes import AesMultiOutput  # pyright: ignore[reportMissingImports]

    model = AesMultiOutput(
        **{key: config[key] for key in MODEL_ARGS if key in config},
        target_transform=config["target_transform"],
    )
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(
            f"Audiobox-Aesthetics: {path}: weights of another model ({lines[0][:120]}); get them from "
            f"{SOURCE}"
        ) from error
    return model


def _transform(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    found = config.get("target_transform") or {}
    if missing := [axis for axis in AXES if not {"mean", "std"} <= set(found.get(axis, {}))]:
        raise ValueError(
            f"Audiobox-Aesthetics: {path}: target_transform has no mean and std for {', '.join(missing)}"
        )
    return {axis: (float(found[axis]["mean"]), float(found[axis]["std"])) for axis in AXES}
