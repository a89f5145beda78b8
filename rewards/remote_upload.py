"""Encode a clip as a multipart body, losslessly: h264 RGB video, float WAV, PNG."""

from __future__ import annotations

import io
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np

from rewards.http import form
from rewards.types import Clip

REFERENCE_RATE_HZ = 16_000


def upload_of(clip: Clip, reward: str) -> tuple[str, bytes]:
    """(content type, body) for POST /v1/score.

    Raises ValueError in one line for a clip without picture and sound, or with arrays of another shape.
    """
    files: dict[str, bytes] = {}
    if clip.frames is not None:
        files["video"] = _mp4(clip.frames, clip.fps)
    if clip.waveform is not None:
        files["audio"] = _wav(clip.waveform, clip.sample_rate_hz)
    if not files:
        raise ValueError("neither picture nor sound")
    request: dict[str, Any] = {
        "rewards": [reward],
        "name": clip.name,
        "prompt": clip.prompt,
        "spans": list(clip.spans),
        "voices": list(clip.voices),
        "mouth_boxes": [[int(edge) for edge in box] for box in clip.mouth_boxes],
        "face_boxes": [[int(edge) for edge in box] for box in clip.face_boxes],
        "span_times": [[float(time) for time in times] for times in clip.span_times],
        "references": [],
    }
    for index, reference in enumerate(clip.references[: len(clip.spans)]):
        request["references"].append(None if reference is None else f"part:reference_{index}")
        if reference is not None:
            files[f"reference_{index}"] = _wav(reference, REFERENCE_RATE_HZ)
    if clip.first_frame is not None:
        request["first_frame"], files["first_frame"] = "part:first_frame", _png(clip.first_frame)
    if clip.reference_sound is not None:
        request["reference_sound"], files["reference_sound"] = (
            "part:reference_sound",
            _wav(clip.reference_sound, clip.sample_rate_hz),
        )
    return form({"request": json.dumps(request, allow_nan=False)}, files)


def _mp4(frames: np.ndarray, fps: float) -> bytes:
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{fps} frames per second")
    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as container:
            options = {"qp": "0", "preset": "ultrafast", "bf": "0", "threads": "1"}
            stream = container.add_stream(
                "libx264rgb", rate=Fraction(fps).limit_denominator(1001), options=options
            )
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
            for picture in frames:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
                )
            container.mux(stream.encode(None))
        return file.getvalue()


def _wav(samples: np.ndarray, rate_hz: int) -> bytes:
    """Of float [N] or [C, N]."""
    import soundfile

    samples = np.asarray(samples)
    if not np.issubdtype(samples.dtype, np.floating) or samples.ndim not in (1, 2) or not samples.size:
        raise ValueError(f"sound must be floats [N] or [C, N], got {samples.dtype} {list(samples.shape)}")
    if rate_hz < 1:
        raise ValueError(f"{rate_hz} samples per second")
    with io.BytesIO() as file:
        soundfile.write(file, samples.T.astype(np.float32), rate_hz, subtype="FLOAT", format="WAV")
        return file.getvalue()


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"the first frame must be uint8 [H, W, 3] RGB, got {picture.dtype} {list(picture.shape)}"
        )
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "PNG")
        return file.getvalue()
