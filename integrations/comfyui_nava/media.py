"""ComfyUI's tensors and files: IMAGE [B, H, W, 3] in 0..1, AUDIO {waveform [B, C, T], sample_rate}."""

from __future__ import annotations

import io
import wave
from typing import Any

import av
import numpy as np
import torch
from PIL import Image


def png_of(image: torch.Tensor) -> bytes:
    """The first picture of an IMAGE."""
    frame = image[0].detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    with io.BytesIO() as file:
        Image.fromarray(frame[..., :3]).save(file, "PNG")
        return file.getvalue()


def wav_of(audio: dict[str, Any]) -> bytes:
    """The first sound of an AUDIO, 16 bit."""
    samples = audio["waveform"][0].detach().cpu().float().clamp(-1, 1)  # [C, T]
    with io.BytesIO() as file:
        with wave.open(file, "wb") as out:
            out.setnchannels(samples.shape[0])
            out.setsampwidth(2)
            out.setframerate(int(audio["sample_rate"]))
            out.writeframes((samples.T * 32767).round().short().contiguous().numpy().astype("<i2").tobytes())
        return file.getvalue()


def frames_of(mp4: bytes) -> tuple[torch.Tensor, float]:
    """(IMAGE of all frames, frames a second)."""
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return torch.from_numpy(np.stack(frames)).float() / 255, rate


def sound_of(wav: bytes) -> dict[str, Any]:
    """AUDIO of a wav."""
    with av.open(io.BytesIO(wav)) as container:
        stream = container.streams.audio[0]
        channels, rate = stream.channels, stream.rate
        resampler = av.AudioResampler(format="fltp")
        pieces = [
            piece.to_ndarray()
            for frame in [*container.decode(stream), None]
            for piece in resampler.resample(frame)
        ]
    waveform = np.concatenate(pieces, axis=1) if pieces else np.zeros((channels, 0), np.float32)
    return {"waveform": torch.from_numpy(waveform)[None], "sample_rate": rate}
