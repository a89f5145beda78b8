"""The made test set of `nava prepare`: raw videos of many kinds with their truth, written to a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prepare_world import ffmpeg
from truth_film import RATE_HZ, VOICES, Film, Truth, music

SLT, RMS, AWB, KAL = "slt", "rms", "awb", "kal16"
NTSC = 30_000 / 1001


def make_set(folder: Path, real: Path | None = None) -> dict[str, Truth]:
    """Writes the videos and the texts beside them to `folder`, and answers the truth of each by file name.

    `real`: a folder of `truth_real.fetch`, whose recordings are put in as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truths: dict[str, Truth] = {}
    for make in (_speakers, _formats, _scenes, _companies, _unseen, _sounds, _pictures, _long):
        for path, truth in make(folder):
            truths[path.name] = truth
    if real is not None:
        from truth_real import recordings

        truths |= {path.name: truth for path, truth in recordings(folder, real)}
    for path, truth in _copies(folder, truths):
        truths[path.name] = truth
    return truths


Made = Iterator[tuple[Path, Truth]]


def _written(film: Film, folder: Path, text: str = "transcript", **options: object) -> tuple[Path, Truth]:
    """The film with the text beside it: transcript, subtitles or nothing."""
    path = film.write(folder, **options)  # type: ignore[arg-type]
    words = film.truth.words
    if text == "transcript" and words:
        path.with_suffix(".txt").write_text(" ".join(word.word for word in words))
    if text == "subtitles":
        path.with_suffix(".srt").write_text(_srt(film.truth))
    return path, film.truth


def _srt(truth: Truth) -> str:
    """A cue for each run of words, with times that are a little too long, as people write them."""
    cues: list[list] = []
    for word in truth.words:
        if cues and word.start_s - cues[-1][1] < 0.3 and len(cues[-1][2]) < 8:
            cues[-1][1] = word.end_s
            cues[-1][2].append(word.word)
        else:
            cues.append([word.start_s, word.end_s, [word.word]])
    blocks = [
        f"{number}\n{_stamp(max(0, start - 0.08))} --> {_stamp(end + 0.1)}\n{' '.join(words).capitalize()}.\n"
        for number, (start, end, words) in enumerate(cues, 1)
    ]
    return "\n".join(blocks)


def _stamp(seconds: float) -> str:
    whole = round(seconds * 1000)
    hours, minutes = whole // 3_600_000, whole // 60_000 % 60
    return f"{hours:02d}:{minutes:02d}:{whole // 1000 % 60:02d},{whole % 1000:03d}"


def _speakers(folder: Path) -> Made:
    """One person who is seen speaking, at every usual rate, with each kind of text and with none."""
    rates = (24.0, 25.0, NTSC, 30.0)
    for number, (voice, fps) in enumerate(zip(VOICES, rates, strict=True)):
        film = Film(f"one {voice}", "one speaker", number, fps)
        film.talk(8.0 + 2 * number, [voice])
        yield _written(film, folder, ("transcript", "subtitles")[number % 2])
    for number, voice in enumerate((SLT, AWB)):
        film = Film(f"unwritten {voice}", "one speaker", 10 + number)
        film.talk(14.0, [voice])
        yield _written(film, folder, "")
    film = Film("short", "short", 12)
    film.talk(2.2, [RMS], turn_words=(2, 3))
    yield _written(film, folder)
    film = Film("one second", "short", 13)
    film.talk(1.3, [SLT], turn_words=(1, 2))
    yield _written(film, folder)


def _formats(folder: Path) -> Made:
    """Rates, layouts, containers and rotation."""

    def film(name: str, seed: int, voice: str, fps: float = 25.0, stereo: bool = False) -> tuple[Path, Truth]:
        made = Film(name, "format", seed, fps)
        made.talk(7.0, [voice])
        return _written(made, folder, stereo=stereo)

    yield film("sixty", 20, RMS, 60.0)
    yield film("stereo", 21, SLT, stereo=True)
    for name, seed, voice, suffix, options in (
        ("rotated", 22, KAL, ".mp4", None),
        ("surround", 23, AWB, ".mov", ["-af", "pan=5.1|FC=c0|FL=0.05*c0|FR=0.05*c0", "-c:v", "copy"]),
        ("mono 22 kHz", 24, SLT, ".mkv", ["-ac", "1", "-ar", "22050", "-c:a", "libmp3lame", "-c:v", "copy"]),
        (
            "variable",
            25,
            RMS,
            ".mkv",
            ["-vf", "select='if(lt(mod(t,2),1),1,not(mod(n,2)))'", "-fps_mode", "vfr"],
        ),
        ("webm", 26, KAL, ".webm", ["-c:v", "libvpx", "-b:v", "900k", "-c:a", "libvorbis"]),
        ("mpeg4", 27, AWB, ".avi", ["-c:v", "mpeg4", "-q:v", "3", "-c:a", "pcm_s16le"]),
    ):
        path, truth = film(f"{name} source", seed, voice, 30.0 if name == "variable" else 25.0)
        other = folder / f"{name}{suffix}"
        if options is None:  # stored on its side, shown upright, as telephones write
            turned = folder / "turned.mkv"
            ffmpeg("-i", path, "-vf", "transpose=2", "-crf", "12", "-c:a", "copy", turned)
            ffmpeg("-display_rotation", "270", "-i", turned, "-c", "copy", other)
            turned.unlink()
        else:
            ffmpeg("-i", path, *options, other)
        yield _renamed(path, other, truth)


def _renamed(path: Path, other: Path, truth: Truth) -> tuple[Path, Truth]:
    path.unlink()
    path.with_suffix(".txt").rename(other.with_suffix(".txt"))
    truth.name = other.stem
    return other, truth


def _scenes(folder: Path) -> Made:
    """Hard cuts, fades, dissolves and flashes, with speech up to the cuts."""
    for number, fps in enumerate((25.0, 30.0, NTSC)):
        film = Film(f"cuts {number}", "cuts", 30 + number, fps)
        for shot in range(7):
            voice = VOICES[(number + shot) % 4]
            film.talk(float(film.rng.uniform(1.6, 4.5)), [voice], None if shot % 3 else [])
        yield _written(film, folder, ("transcript", "subtitles", "")[number])
    film = Film("fades", "fades", 34)
    for shot in range(6):
        film.talk(4.0, [VOICES[shot % 4]], None if shot % 2 else [])
        if shot:
            film.fade() if shot % 2 else film.dissolve()
    yield _written(film, folder)
    for number in range(2):
        film = Film(f"flashes {number}", "flashes", 35 + number, 24.0 + number)
        for shot in range(4):
            film.talk(4.5, [VOICES[shot]], None if shot % 2 else [])
            film.flash(1 + shot % 3)
        yield _written(film, folder)


def _companies(folder: Path) -> Made:
    """Two and three speakers."""
    for number, pair in enumerate(((SLT, RMS), (AWB, KAL), (RMS, KAL))):
        film = Film(f"two {number}", "two speakers", 40 + number)
        film.talk(16.0, pair)
        yield _written(film, folder, ("transcript", "subtitles", "")[number])
    film = Film("interview", "two speakers", 44, 30.0)
    for shot in range(6):
        film.talk(4.2, [(SLT, KAL)[shot % 2]])
    yield _written(film, folder)
    film = Film("three", "three speakers", 45)
    for shot in range(2):
        film.talk(9.0, [(SLT, RMS), (KAL, AWB)][shot])
    film.talk(8.0, [AWB, SLT])
    yield _written(film, folder)


def _unseen(folder: Path) -> Made:
    """Speech that no face says: dubbed, late, off screen, with and without faces in the picture."""
    plans: list[tuple[str, float, list[str], list[str] | None, str]] = [
        ("dubbed short", 3.0, [SLT], [SLT], "dubbed"),
        ("dubbed a", 9.0, [SLT], [RMS], "dubbed"),
        ("dubbed b", 20.0, [AWB], [KAL], "dubbed"),
        ("dubbed c", 12.0, [AWB, SLT], [AWB, SLT], "dubbed"),
        ("other a", 10.0, [RMS], [SLT], "other"),
        ("other b", 24.0, [SLT], [AWB], "other"),
        ("late", 10.0, [RMS], [RMS], "late"),
        ("still mouth", 9.0, [AWB], [SLT], "still"),
        ("nobody", 9.0, [KAL], [], "own"),
    ]
    for number, (name, seconds, voices, faces, lips) in enumerate(plans):
        film = Film(name, "unseen", 50 + number)
        film.talk(seconds, voices, faces, lips)
        yield _written(film, folder)
    film = Film("off screen", "half seen", 60)
    film.talk(16.0, [SLT, RMS], [SLT])
    yield _written(film, folder)
    film = Film("voice over", "half seen", 61)
    film.talk(6.0, [RMS])
    film.talk(6.0, [RMS], [])
    film.talk(6.0, [RMS], [SLT], "still")
    yield _written(film, folder)


def _sounds(folder: Path) -> Made:
    """Music with and without speech, silence, noise."""
    film = Film("music", "no speech", 70)
    film.scenery(8.0)
    yield _written(film, folder, "", add=music(8.0, 1))
    film = Film("silence", "no speech", 71)
    film.scenery(6.0)
    yield _written(film, folder, "")
    film = Film("speech in music", "one speaker", 72)
    film.talk(9.0, [SLT])
    yield _written(film, folder, add=music(9.0, 2, 0.02))
    film = Film("speech in noise", "one speaker", 73)
    film.talk(9.0, [RMS])
    noise = np.random.default_rng(9).standard_normal(9 * RATE_HZ) * 0.006
    yield _written(film, folder, add=noise.astype(np.float32))


def _pictures(folder: Path) -> Made:
    """Black bars, texts on the picture."""
    film = Film("bars", "bars", 80)
    film.talk(7.0, [AWB])
    path, truth = _written(film, folder)
    other = folder / "bars wide.mp4"
    ffmpeg("-i", path, "-vf", "pad=240:160:40:0:black", "-crf", "14", "-c:a", "copy", other)
    yield _renamed(path, other, truth)
    for number, voice in enumerate((KAL, SLT)):
        film = Film(f"subtitled {number}", "overlay", 81 + number)
        film.talk(8.0, [voice], None if number else [])
        film.subtitles()
        yield _written(film, folder)


def _long(folder: Path) -> Made:
    """Three minutes of many shots, and one minute of one dubbed shot."""
    film = Film("long", "long", 90)
    while film.at_s < 174.0:
        pair = [(SLT, RMS), (AWB, KAL), (RMS, KAL), (SLT, AWB)][int(film.rng.integers(4))]
        alone = bool(film.rng.uniform() < 0.6)
        film.talk(
            min(float(film.rng.uniform(3.0, 11.0)), 180.0 - film.at_s),
            pair[int(film.rng.integers(2)) :][:1] if alone else pair,
        )
    yield _written(film, folder, "subtitles")
    film = Film("dubbed minute", "unseen", 91)
    film.talk(60.0, [RMS], [AWB], "dubbed")
    yield _written(film, folder, "subtitles")


def _copies(folder: Path, truths: dict[str, Truth]) -> Made:
    """Re-encoded, cropped, smaller, brighter, trimmed and mirrored copies, and one of the same bytes."""
    changes: dict[str, tuple[str, list[str]]] = {
        "again": ("one slt.mp4", ["-crf", "33", "-c:a", "aac", "-b:a", "48k"]),
        "cropped": ("one rms.mp4", ["-vf", "crop=152:152:4:4", "-crf", "26"]),
        "smaller": ("two 0.mp4", ["-vf", "scale=112:-2", "-crf", "28", "-r", "24"]),
        "brighter": ("interview.mp4", ["-vf", "eq=brightness=0.08:contrast=1.1", "-crf", "24"]),
        "mirrored": ("one kal16.mp4", ["-vf", "hflip", "-crf", "24"]),
        "trimmed": ("one awb.mp4", ["-ss", "0.3", "-crf", "24"]),
        "louder": ("cuts 0.mp4", ["-af", "volume=1.3", "-crf", "26", "-c:a", "aac"]),
    }
    for name, (source, options) in changes.items():
        path = folder / f"{name} copy.mkv"
        ffmpeg("-i", folder / source, *options, path)
        for beside in ((folder / source).with_suffix(suffix) for suffix in (".txt", ".srt")):
            if beside.is_file():
                shutil.copy(beside, path.with_suffix(beside.suffix))
        yield path, Truth(path.stem, "copy", truths[source].seconds, truths[source].fps, copy_of=source)
    shutil.copy(folder / "two 1.mp4", folder / "two 1 same bytes.mp4")
    yield folder / "two 1 same bytes.mp4", Truth("two 1 same bytes", "copy", copy_of="two 1.mp4")


def write_truth(truths: dict[str, Truth], path: Path) -> None:
    path.write_text(json.dumps({name: truth.as_json() for name, truth in truths.items()}, indent=1))
