"""The sound of a clip, and its loudness per frame."""

from __future__ import annotations

import numpy as np

from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.plan import CLEAN_SNR_DB, FPS, ClipPlan, SoundEvent, Turn

SAMPLES_PER_TOKEN = 640
TOKENS_PER_S = SAMPLE_RATE_HZ / SAMPLES_PER_TOKEN
THUDS_HZ = {"dull thuds": 90.0, "sharp knocks": 320.0}
TONES_HZ = {"a low tone": 330.0, "a high tone": 880.0}
LIT_SHARE = 0.5  # of a light's period


def num_samples(num_frames: int) -> int:
    """Samples beside `num_frames` of picture: whole audio tokens, round(seconds * 25) * 640."""
    return round(num_frames / FPS * TOKENS_PER_S) * SAMPLES_PER_TOKEN


def spoken(turn: Turn, length: int) -> np.ndarray:
    """float32 [length]: the word at its onset, silence around. Raises ValueError when it does not fit."""
    waveform = load_bank().utterances[turn.word, turn.voice][turn.take].waveform
    start = round(turn.onset_s * SAMPLE_RATE_HZ)
    if start + len(waveform) > length:
        raise ValueError(
            f"{turn.word!r} at {turn.onset_s:.2f} s does not fit into {length / SAMPLE_RATE_HZ:.2f} s"
        )
    track = np.zeros(length, np.float32)
    track[start : start + len(waveform)] = waveform
    return track


def word_duration_s(turn: Turn) -> float:
    return len(load_bank().utterances[turn.word, turn.voice][turn.take].waveform) / SAMPLE_RATE_HZ


def soundtrack(plan: ClipPlan, noise_seed: int) -> np.ndarray:
    """float32 [N] in -1..1: speech or event with the plan's gain, plus noise at the plan's SNR."""
    length = num_samples(plan.num_frames)
    clean = sum((spoken(turn, length) for turn in plan.turns), np.zeros(length, np.float32))
    if plan.event is not None:
        clean = clean + event_sound(plan.event, length, noise_seed)
    clean = clean * np.float32(10 ** (plan.gain_db / 20))
    if plan.snr_db < CLEAN_SNR_DB:
        loud = np.abs(clean) > 1e-3
        power = float(np.mean(clean[loud] ** 2)) if loud.any() else 0.0
        noise = np.random.default_rng(noise_seed).standard_normal(length, np.float32)
        clean = clean + noise * np.float32(np.sqrt(power) * 10 ** (-plan.snr_db / 20))
    return np.clip(clean, -1.0, 1.0)


def event_sound(event: SoundEvent, length: int, noise_seed: int) -> np.ndarray:
    """float32 [length]: thuds at a ball's impacts, or a tone whenever the light is lit."""
    time = np.arange(length, dtype=np.float32) / SAMPLE_RATE_HZ
    since = np.mod(time - event.first_s, event.period_s)
    since[time < event.first_s] = 1e3  # nothing before the first one
    if event.name == "ball":
        crackle = 0.25 * np.random.default_rng([noise_seed, 1]).standard_normal(length, np.float32)
        return (
            0.6
            * np.exp(-since / 0.045)
            * (np.sin(2 * np.pi * THUDS_HZ[event.tone] * since) + crackle * np.exp(-since / 0.01))
        )
    edge = 0.006  # seconds; a hard edge would click
    lit = np.clip(since / edge, 0, 1) * np.clip((LIT_SHARE * event.period_s - since) / edge, 0, 1)
    return (0.2 * lit * np.sin(2 * np.pi * TONES_HZ[event.tone] * time)).astype(np.float32)


def loudness_per_frame(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """float32 [T]: root mean square of the samples during each frame, [t / fps, (t + 1) / fps)."""
    energy = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    edges = np.minimum(np.round(np.arange(num_frames + 1) / FPS * SAMPLE_RATE_HZ).astype(int), len(waveform))
    counts = np.maximum(np.diff(edges), 1)
    return np.sqrt(np.maximum(np.diff(energy[edges]), 0.0) / counts).astype(np.float32)


def mouth_openings(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """float32 [T] in 0..1: mouth opening of clean speech; a root-like curve keeps soft sounds visible."""
    loudness = loudness_per_frame(waveform, num_frames)
    return (loudness / max(float(loudness.max()), 1e-6)) ** 0.8


def ball_heights(event: SoundEvent, num_frames: int) -> np.ndarray:
    """float32 [T] in 0..1 at the frames' centres: free fall between impacts."""
    phase = np.mod((_frame_times(num_frames) - event.first_s) / event.period_s, 1.0)
    return (1.0 - (2.0 * phase - 1.0) ** 2).astype(np.float32)


def light_levels(event: SoundEvent, num_frames: int) -> np.ndarray:
    """float32 [T] in 0..1 at the frames' centres: 1 while lit."""
    time = _frame_times(num_frames)
    lit = np.mod(time - event.first_s, event.period_s) < LIT_SHARE * event.period_s
    return (lit & (time >= event.first_s)).astype(np.float32)


def _frame_times(num_frames: int) -> np.ndarray:
    return (np.arange(num_frames) + 0.5) / FPS
