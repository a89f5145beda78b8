"""Costs of the networks beside a model, in place of those that take a while to count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from experiments.alignment import beside
from experiments.alignment.networks import NetworkCost

TINY = NetworkCost(10, 40, 4, 1_000_000_000_000, half=False)
GIB = 2**30
# GiB of weights, and beside them at work for a clip of 145 x 704 x 1280, as counted (`-m slow` counts again)
PUBLISHED = {
    "video": (1.31258, 9.76379),
    "audio": (0.40547, 0.17223),
    "text": (10.58152, 0.24219),
    "syncnet": (0.05078, 0.16935),
    "wer_whisper": (5.74995, 0.48288),
    "sim_wavlm_ecapa": (1.20654, 0.08820),
    "audiobox_pq": (0.35160, 0.12266),
    "clap_text_cosine": (0.57224, 0.02779),
}


def count_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is TINY, but for a reward that is none here."""
    monkeypatch.setattr(beside, "video_decode_cost", lambda media: replace(TINY, half=True))
    monkeypatch.setattr(beside, "audio_decode_cost", lambda media: TINY)
    monkeypatch.setattr(beside, "text_encoder_cost", lambda: TINY)
    monkeypatch.setattr(beside, "reward_cost", lambda name, media: None if name == "wer_endpoint" else TINY)


def published_sizes(monkeypatch: pytest.MonkeyPatch, sizes: Mapping[str, tuple[float, float]]) -> None:
    """Every network has the GiB of `sizes`, whatever the clip."""
    costs = {
        name: NetworkCost(1, round(weights * GIB), round(peak * GIB), 1, half=True)
        for name, (weights, peak) in sizes.items()
    }
    monkeypatch.setattr(beside, "video_decode_cost", lambda media: costs["video"])
    monkeypatch.setattr(beside, "audio_decode_cost", lambda media: costs["audio"])
    monkeypatch.setattr(beside, "text_encoder_cost", lambda: costs["text"])
    monkeypatch.setattr(beside, "reward_cost", lambda name, media: costs.get(name))
