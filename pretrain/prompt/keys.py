"""Keys of a row of prompts, and what is said about any other."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pretrain.types import VIDEO_FRAMES_PER_LATENT

# Of the public format, then ours, then those of clips to score. `text` is the public format's older `prompt`.
KEYS = (
    *("prompt", "text", "image_path", "spk_wavs"),
    *("data_id", "num_frames", "height", "width", "meta"),
    *("task", "seed", "negative_prompt"),
    *("video", "video_path"),
)
DEFAULT_FPS = 24.0  # of every recipe
_LIKENESS = 0.75  # from which an unknown key is taken for a misspelt one
_MEANT = {
    **dict.fromkeys(("image", "first_frame", "img", "img_path", "picture", "first_image"), "image_path"),
    **dict.fromkeys(
        ("speaker_wav", "speaker_wavs", "spk", "voice", "voices", "reference_paths", "reference", "ref_wav"),
        "spk_wavs",
    ),
    **dict.fromkeys(("audio_path", "audio", "wav", "wavs"), "spk_wavs"),
    **dict.fromkeys(("caption", "description", "video_prompt"), "prompt"),
    **dict.fromkeys(("id", "name", "uid", "utt_id", "case_id"), "data_id"),
    **dict.fromkeys(("frames", "length", "num_frame", "n_frames"), "num_frames"),
    **dict.fromkeys(("h", "image_height"), "height"),
    **dict.fromkeys(("w", "image_width"), "width"),
    "negative": "negative_prompt",
}
# Settings of a run, which a row cannot have of its own: where they are given.
_SETTINGS = {
    "fps": "generate.fps",
    **dict.fromkeys(("steps", "num_inference_steps"), "generate.sampler.steps"),
    **dict.fromkeys(("guidance", "guidance_scale", "cfg"), "generate.sampler.guidance"),
}


def key_errors(row: Mapping[str, Any], own_keys: bool = False) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) for keys that nothing reads. With `own_keys`, only for those that look meant for
    one that is read, since others are carried along."""
    if "prompt" in row and "text" in row:
        yield "text", "stands beside prompt, and only one can be read; keep prompt"
    for key, value in row.items():
        if key in KEYS:
            continue
        if said := _said(key, value):
            yield key, said
        elif not own_keys:
            yield key, f"unknown key; valid: {', '.join(KEYS)}; what is your own goes into meta"


def _said(key: str, value: Any) -> str:
    """About a key whose meaning is known or can be guessed."""
    plain = key.strip().casefold().replace("-", "_")
    if plain in ("duration", "duration_s", "seconds"):
        return _about_duration(value)
    if plain in _SETTINGS:
        return f"holds for all rows of a run; remove it and give --set {_SETTINGS[plain]}=..."
    close = difflib.get_close_matches(plain, KEYS, n=1, cutoff=_LIKENESS)
    meant = _MEANT.get(plain, close[0] if close else "")
    return f"unknown key; did you mean {meant!r}? valid: {', '.join(KEYS)}" if meant else ""


def _about_duration(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= 0 or value > 1e6:
        return "not read; give num_frames, 1 + 4n"
    step = VIDEO_FRAMES_PER_LATENT
    frames = 1 + step * max(0, round((value * DEFAULT_FPS - 1) / step))
    return (
        f'not read; give "num_frames": {frames} in its place, {frames / DEFAULT_FPS:.2f} s at '
        f"{DEFAULT_FPS:g} frames a second"
    )
