"""Plays a plan: pictures, sound and the row that describes them. Runs in worker processes; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.corpus.bank import SAMPLE_RATE_HZ, load_bank
from pretrain.data.corpus.cast import STATIC, Colour
from pretrain.data.corpus.plan import FPS, ClipPlan
from pretrain.data.corpus.render import (
    LEFT,
    RIGHT,
    SINGLE,
    SIZE,
    Face,
    PixelBox,
    camera_windows,
    render_ball,
    render_faces,
    render_light,
)
from pretrain.data.corpus.sound import (
    ball_heights,
    light_levels,
    mouth_openings,
    num_samples,
    soundtrack,
    spoken,
    word_duration_s,
)
from pretrain.media.write import write_mp4, write_wav

EVENT_COLOURS: dict[str, Colour] = {
    "red": (206, 52, 46),
    "green": (52, 160, 70),
    "white": (244, 244, 240),
    "yellow": (252, 226, 84),
    "orange": (246, 150, 50),
}
BLINK_S = 0.1
FRAMES_PER_BLINK = 48
GAP_S = 0.06  # between the words of a reference


def faces_of(plan: ClipPlan) -> tuple[Face, ...]:
    """Where the faces stand: at the plan's place, else one in the middle, or one left and one right."""
    if plan.place is not None:
        return (Face(plan.turns[0].character, *plan.place),)
    places = [SINGLE] if len(plan.turns) == 1 else [LEFT, RIGHT]
    return (
        tuple(Face(turn.character, *place) for turn, place in zip(plan.turns, places, strict=False))
        if plan.has_video
        else ()
    )


def openings_of(plan: ClipPlan) -> np.ndarray:
    """float32 [faces, T] in 0..1: each mouth follows its own speaker's clean sound."""
    length = num_samples(plan.num_frames)
    sounds = [spoken(turn, length) for turn in plan.turns]
    if plan.place is not None:
        sounds = [np.sum(sounds, axis=0)]
    return np.stack([mouth_openings(sound, plan.num_frames) for sound in sounds])


def pictures(plan: ClipPlan, seed: int, openings: np.ndarray | None = None) -> np.ndarray:
    """uint8 [T, 64, 64, 3]; mouths open by `openings_of(plan)` or `openings` [faces, T]."""
    if plan.event is not None:
        colour = EVENT_COLOURS[plan.event.colour]
        if plan.event.name == "ball":
            return render_ball(ball_heights(plan.event, plan.num_frames), plan.background, colour)
        return render_light(light_levels(plan.event, plan.num_frames), plan.background, colour)
    openings = openings_of(plan) if openings is None else openings
    times, rng = (np.arange(plan.num_frames) + 0.5) / FPS, np.random.default_rng([seed, 2])
    num_blinks = max(1, plan.num_frames // FRAMES_PER_BLINK)
    # some fall outside the clip
    starts = rng.uniform(-0.4, plan.num_frames / FPS + 0.4, (len(openings), num_blinks, 1))
    blinks = np.any((times >= starts) & (times < starts + BLINK_S), axis=1)
    return render_faces(faces_of(plan), plan.background, openings, blinks, plan.camera)


def record(plan: ClipPlan, folder: Path, seed: int) -> dict[str, Any]:
    """Writes the clip (mp4) or sound (wav) of a plan and returns its row in the public training format."""
    waveform = soundtrack(plan, seed)
    if plan.has_video:
        data_path = f"clips/{plan.data_id}.mp4"
        write_mp4(folder / data_path, pictures(plan, seed), FPS, waveform, SAMPLE_RATE_HZ)
    else:
        data_path = f"sounds/{plan.data_id}.wav"
        write_wav(folder / data_path, waveform, SAMPLE_RATE_HZ)
    side = SIZE if plan.has_video else 0
    duration_s = plan.num_frames / FPS if plan.has_video else len(waveform) / SAMPLE_RATE_HZ
    info = {"data_path": data_path, "fps": FPS if plan.has_video else 0, "duration": round(duration_s, 6)}
    starts = [round(turn.onset_s, 4) for turn in plan.turns]
    ends = [round(turn.onset_s + word_duration_s(turn), 4) for turn in plan.turns]
    quality = {
        "snr_db": plan.snr_db,
        "loudness_dbfs": round(20 * float(np.log10(np.sqrt(np.mean(waveform**2)) + 1e-6)), 2),
        "num_speakers": len({turn.voice for turn in plan.turns}),
        "face_visible": bool(faces_of(plan)),
        "clipped": bool(np.max(np.abs(waveform)) >= 0.999),
    }
    return {
        "data_id": plan.data_id,
        "video_info": [{**info, "image_width": side, "image_height": side}],
        "text_list": [{"text": plan.text, "speech_start": starts, "speech_end": ends}],
        "audio_splits_info_tagging": [quality],
        "meta": {**meta_of(plan), "reference_paths": reference_paths(plan, "references")},
    }


def prompt_row(plan: ClipPlan) -> dict[str, Any]:
    """The plan as a row of the public inference format, for a file in `prompts/`."""
    references = reference_paths(plan, "../references")
    return {
        "prompt": plan.text,
        "spk_wavs": references,
        "num_frames": plan.num_frames,
        "data_id": plan.data_id,
        "meta": meta_of(plan),
    }


def meta_of(plan: ClipPlan) -> dict[str, Any]:
    """What the evaluation knows about a clip beyond its text; boxes in pixels, x0 y0 x1 y1."""
    meta: dict[str, Any] = {
        "kind": plan.kind,
        "words": [turn.word for turn in plan.turns],
        "voices": [turn.voice for turn in plan.turns],
        "characters": [turn.character for turn in plan.turns],
        "described_voice": plan.described_voice,
        "swapped": plan.swapped,
        "pair_held_out": plan.pair_held_out,
        "background": plan.background,
        "camera": plan.camera,
        "num_frames": plan.num_frames,
        "mouth_boxes": [face.mouth_box for face in faces_of(plan)],
    }
    if plan.camera != STATIC:
        meta["mouth_boxes_per_frame"] = moving_boxes(plan)
    if plan.event is not None:
        meta["event"] = plan.event.name
    return meta


def moving_boxes(plan: ClipPlan) -> list[list[PixelBox]]:
    """[T][faces] mouth boxes as the moving camera sees them, cut to the picture."""
    boxes = []
    for x, y, grow in camera_windows(plan.camera, plan.num_frames).tolist():
        seen = []
        for x0, y0, x1, y1 in (face.mouth_box for face in faces_of(plan)):
            edges = [(x0 - x) * grow, (y0 - y) * grow, (x1 - x) * grow, (y1 - y) * grow]
            left, top, right, bottom = (min(SIZE, max(0, round(edge + SIZE / 2))) for edge in edges)
            seen.append((left, top, right, bottom))
        boxes.append(seen)
    return boxes


def reference_paths(plan: ClipPlan, folder: str) -> list[str]:
    return [f"{folder}/{turn.reference}.wav" for turn in plan.turns if turn.reference]


def write_reference(path: Path, voice: str, words: tuple[tuple[str, int], ...]) -> None:
    """A reference voice: a few words in a row."""
    gap = np.zeros(round(GAP_S * SAMPLE_RATE_HZ), np.float32)
    pieces = [gap]
    for word, take in words:
        pieces += [load_bank().utterances[word, voice][take].waveform, gap]
    write_wav(path, np.concatenate(pieces), SAMPLE_RATE_HZ)
