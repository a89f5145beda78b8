"""Clips as raters see them: of one size, length, rate, codec and loudness, without metadata, of equal bytes.

All clips of a case, spoilt copies too, are made together, so that nothing about a file but its content tells
them apart.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.voting.loudness import RATE_HZ, common_gains
from finetune.gsb.pairs import ClipRef
from pretrain.files import sha256_of
from pretrain.media.errors import MediaError
from pretrain.media.read import Media, probe, read_media
from pretrain.media.write import fit_length, write_mp4, write_wav

MAX_LENGTH_DIFFERENCE = 0.1  # of the longer clip
SHIFT_S = 0.5  # of the sound of a desynchronised copy, at most
MIN_FREE_BOX = 8  # bytes of an mp4 box without content


@dataclass(frozen=True)
class ShownClip:
    """A file in the survey's folder. `spoilt`: "" for a model's own clip, else desync or voice."""

    model: str
    spoilt: str
    file: str
    sha256: str  # of the model's file
    shown_sha256: str


def shown_length(clips: Sequence[ClipRef]) -> float:
    """Seconds that all clips of a case are cut to: the shortest's.

    Raises MediaError for a clip that is missing, broken, without pictures or sound, or much shorter
    than another one.
    """
    lengths = {}
    for clip in clips:
        assert clip.video is not None
        info = probe(clip.video)
        if info.fps is None or info.sample_rate_hz is None:
            missing = "sound" if info.fps else "pictures"
            raise MediaError(f"{clip.video}: no {missing}; raters compare clips with both, drop the case")
        if not info.duration_s:
            raise MediaError(f"{clip.video}: of unknown length; write the file again or drop the case")
        lengths[clip.video] = info.duration_s
    shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    if lengths[longest] - lengths[shortest] > MAX_LENGTH_DIFFERENCE * lengths[longest]:
        raise MediaError(
            f"{shortest}: {lengths[shortest]:.2f} s, but {longest} is {lengths[longest]:.2f} s; generate "
            "both with one length, which would tell them apart"
        )
    return lengths[shortest]


def make_clips(
    clips: Sequence[ClipRef],
    folder: Path,
    spoil: Mapping[str, Sequence[str]] | None = None,
    other_voice: Path | None = None,
) -> tuple[list[ShownClip], float]:
    """Writes all clips of one case; returns them, and their length in seconds.

    spoil: model -> ways of further copies; `other_voice` is a clip or sound whose sound a "voice" copy gets.
    Raises MediaError as `shown_length` does.
    """
    shown_length(clips)
    media = [_read(clip.video) for clip in clips if clip.video]
    frames, sounds = _of_one_shape(media)
    fps = media[0].fps
    made = [(clip, "", sound) for clip, sound in zip(clips, sounds, strict=True)]
    pictures = dict(zip((clip.model for clip in clips), frames, strict=True))
    for clip, sound in zip(clips, sounds, strict=True):
        for way in (spoil or {}).get(clip.model, ()):
            made.append((clip, way, _spoilt(sound, way, other_voice)))
    gains, _ = common_gains([sound for _, _, sound in made])
    files = [f"{secrets.token_hex(16)}.mp4" for _ in made]
    mono = all(np.array_equal(sound[0], sound[1]) for _, _, sound in made)
    for (clip, _, sound), gain, file in zip(made, gains, files, strict=True):
        written = (sound[0] if mono else sound) * gain
        write_mp4(folder / file, pictures[clip.model], fps, written, RATE_HZ)
    pad_to_one_size([folder / file for file in files])
    digests = {clip.model: sha256_of(clip.video) for clip in clips if clip.video}
    shown = [
        ShownClip(clip.model, way, file, digests[clip.model], sha256_of(folder / file))
        for (clip, way, _), file in zip(made, files, strict=True)
    ]
    return shown, frames[0].shape[0] / fps


def make_reference(source: Path, folder: Path) -> str:
    """A voice to listen to, as wav at -23 LUFS without metadata; returns the file's random name."""
    sound = read_media(source, want_video=False, sample_rate_hz=RATE_HZ, channels=2).waveform
    assert sound is not None
    gains, _ = common_gains([sound])
    name = f"{secrets.token_hex(16)}.wav"
    write_wav(folder / name, sound * gains[0], RATE_HZ)
    return name


def pad_to_one_size(paths: Sequence[Path]) -> None:
    """Equal bytes by a `free` box behind each mp4, which players skip (ISO/IEC 14496-12, 8.1.2)."""
    size = max(path.stat().st_size for path in paths) + MIN_FREE_BOX
    for path in paths:
        missing = size - path.stat().st_size
        with path.open("ab") as file:
            file.write(missing.to_bytes(4, "big") + b"free" + bytes(missing - MIN_FREE_BOX))


def _read(path: Path) -> Media:
    return read_media(path, fps=None, sample_rate_hz=RATE_HZ, channels=2)


def _of_one_shape(media: list[Media]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures uint8 [T, H, W, 3] and sounds [2, N]: the highest rate, the smallest size, the shortest."""
    fps = max(one.fps for one in media)
    size = min(
        ((one.frames.shape[1], one.frames.shape[2]) for one in media if one.frames is not None),
        key=lambda shape: shape[0] * shape[1],
    )
    height, width = (max(2, side // 2 * 2) for side in size)
    timed = [_at_rate(one, fps) for one in media]
    num_frames = min(len(frames) for frames in timed)
    num_samples = round(num_frames / fps * RATE_HZ)
    frames = [_fitted(found[:num_frames], height, width) for found in timed]
    sounds = [fit_length(one.waveform, num_samples) for one in media if one.waveform is not None]
    return frames, sounds


def _at_rate(media: Media, fps: float) -> np.ndarray:
    """The frame nearest in time at a higher rate."""
    assert media.frames is not None
    if abs(media.fps - fps) < 1e-3 * fps:
        return media.frames
    num = round(len(media.frames) / media.fps * fps)
    return media.frames[np.minimum(np.arange(num) * media.fps / fps, len(media.frames) - 1).astype(int)]


def _fitted(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scaled to fit and put on black, where the size differs."""
    if frames.shape[1:3] == (height, width):
        return frames
    scale = min(height / frames.shape[1], width / frames.shape[2])
    inner = max(1, round(frames.shape[1] * scale)), max(1, round(frames.shape[2] * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    fitted = np.zeros((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((inner[1], inner[0]), Image.Resampling.LANCZOS)
        fitted[index, top : top + inner[0], left : left + inner[1]] = np.asarray(small)
    return fitted


def _spoilt(sound: np.ndarray, way: str, other_voice: Path | None) -> np.ndarray:
    """[2, N] that no longer belongs to its pictures: moved round by 0.5 s, or another clip's sound."""
    num = sound.shape[1]
    if way == "desync":
        shift = min(round(SHIFT_S * RATE_HZ), num // 2)
        return np.roll(sound, shift, axis=1)
    assert other_voice is not None
    other = read_media(other_voice, want_video=False, sample_rate_hz=RATE_HZ, channels=2).waveform
    assert other is not None
    return fit_length(other, num)
