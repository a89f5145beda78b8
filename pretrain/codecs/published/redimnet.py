"""The ReDimNet voice encoder that conditions the published NAVA: first 30 s, 16 kHz mono -> 192 values.

The network is that of `rewards.timbre.redimnet`. An encoder must not score what it conditions; `name`
identifies it, so that a rubric can refuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pretrain.codecs.base import check_finite
from pretrain.codecs.published.deferred import on_device
from pretrain.codecs.published.weights import Source
from pretrain.codecs.speaker import is_silent
from pretrain.types import AUDIO_SAMPLE_RATE_HZ, SPEAKER_DIM
from rewards.timbre import redimnet

SOURCE = Source(
    "the ReDimNet voice encoder",
    redimnet.SOURCE.format(size="M", dataset="vb2+vox2+cnc", train_type="ft_mix"),
    redimnet.LICENCE,
)
MIN_SAMPLES = AUDIO_SAMPLE_RATE_HZ // 10


class ReDimNetSpeaker:
    """Implements `SpeakerEncoder`, loading `network` on first use; results on the CPU, not of unit length."""

    name = "redimnet"

    def __init__(self, network: Callable[[], redimnet.ReDimNet]) -> None:
        self.networks = network

    @on_device
    @torch.no_grad()
    def embed(self, waveform: Tensor) -> Tensor:
        """16 kHz mono [N] -> [192]; ValueError when silent, empty, shorter than 0.1 s or non-finite."""
        check_finite(waveform, "reference sound")
        waveform = waveform[: redimnet.MAX_SAMPLES].float()
        if waveform.dim() != 1 or is_silent(waveform):
            raise ValueError(
                f"reference sound of {len(waveform)} samples is silent or empty; give one with a voice in "
                "it, or none"
            )
        if len(waveform) < MIN_SAMPLES:
            raise ValueError(
                f"reference sound of {len(waveform) / AUDIO_SAMPLE_RATE_HZ:.3f} s is too short; give at "
                "least 0.1 s, or none"
            )
        network = self.networks()
        voice = network(waveform[None].to(next(network.parameters()).device))[0].float().cpu()
        check_finite(voice, "voice of the reference sound")
        return voice


def load_redimnet(path: Path, device: str) -> redimnet.ReDimNet:
    """The network in evaluation mode. Raises FileNotFoundError, or ValueError for another network."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of {SOURCE.what}; {SOURCE.advice} and name the file")
    network = redimnet.load_net(path)
    if network.args.embed_dim != SPEAKER_DIM:
        raise ValueError(
            f"{path}: voices of {network.args.embed_dim} values, expected {SPEAKER_DIM}; {SOURCE.advice}"
        )
    return network.to(device)
