"""Where there is speech: WebRTC's detector, whose model is in its wheel, or Silero's where installed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.preparation.records import SPEECH_RATE_HZ, Stretch

FRAME_S = 0.03
AGGRESSIVENESS = 3
SILENT_PEAK = 5e-3  # of a whole sound: nobody speaks below it, and -50 LUFS is the limit of loudness
JOIN_S, MIN_S, PAD_S = 0.3, 0.12, 0.06


def webrtc(waveform: np.ndarray) -> list[Stretch]:
    """[N] at 16 kHz -> stretches of speech. Loud music is taken for speech (docs/preparing.md)."""
    import webrtcvad

    detector, step = webrtcvad.Vad(AGGRESSIVENESS), round(FRAME_S * SPEECH_RATE_HZ)
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak < SILENT_PEAK:
        return []
    pcm = np.round(waveform / peak * 0.7 * 32767).astype("<i2")
    pcm = pcm[: len(pcm) // step * step].reshape(-1, step)
    return stretches([detector.is_speech(frame.tobytes(), SPEECH_RATE_HZ) for frame in pcm], FRAME_S)


def silero(waveform: np.ndarray) -> list[Stretch]:
    """[N] at 16 kHz -> stretches of speech, by Silero VAD (`pip install silero-vad`), steadier in noise and
    music. Raises ValueError where it is not installed."""
    try:
        from silero_vad import (  # pyright: ignore[reportMissingImports]
            get_speech_timestamps,
            load_silero_vad,
        )
    except ImportError as error:
        raise ValueError(f"prepare.activity: {error}; pip install silero-vad onnxruntime") from None
    import torch

    found = get_speech_timestamps(
        torch.from_numpy(waveform),
        load_silero_vad(onnx=True),
        sampling_rate=SPEECH_RATE_HZ,
        return_seconds=True,
    )
    return [(float(one["start"]), float(one["end"])) for one in found]


def stretches(speech: Sequence[bool], step_s: float) -> list[Stretch]:
    """Frames to stretches: short gaps closed, short stretches dropped, a little room around each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(speech, np.int8), [0]])))
    found: list[list[float]] = []
    for start, end in zip(edges[::2] * step_s, edges[1::2] * step_s, strict=True):
        if found and start - found[-1][1] <= JOIN_S:
            found[-1][1] = float(end)
        else:
            found.append([float(start), float(end)])
    whole = len(speech) * step_s
    return [
        (max(0.0, start - PAD_S), min(whole, end + PAD_S)) for start, end in found if end - start >= MIN_S
    ]
