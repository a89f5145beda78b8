"""Films with known truth: shots of talking faces or of scenery, words with times, and whose lips say them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from prepare_world import scene

from pretrain.data.corpus.bank import load_bank
from pretrain.data.corpus.cast import CHARACTERS
from pretrain.data.corpus.render import LEFT, RIGHT, SINGLE, Face, render_faces
from pretrain.media.write import write_mp4

RATE_HZ = 16_000
SIDE = 160
EDGE_S = 0.35  # without speech at both ends of a shot
WORD_GAP_S, TURN_GAP_S = (0.05, 0.14), (0.45, 0.9)
NOISE_DB = -68.0
# of the four drawn people and six walls, those that OpenCV's Haar cascade knows for faces; it sees the other
# two people hardly ever, and two of them at once before a dark wall only
FACE_OF = {"slt": "ruby", "rms": "alan", "awb": "alan", "kal16": "ruby"}
WALLS, WALL_OF_TWO = ("dark", "blue", "purple", "teal"), "dark"


@dataclass(frozen=True)
class TrueWord:
    """A word of a film. `seen`: a face in the picture says it, in time."""

    word: str
    voice: str
    start_s: float
    end_s: float
    seen: bool


@dataclass
class Truth:
    """What a raw video really holds. `cuts`: (first, last) second of each change of scene, equal for a hard
    cut; `copy_of`: the name of the video whose content it has."""

    name: str
    kind: str
    seconds: float = 0.0
    fps: float = 25.0
    words: list[TrueWord] = field(default_factory=list)
    cuts: list[tuple[float, float]] = field(default_factory=list)
    copy_of: str = ""
    text: str = ""  # the transcript of a recording whose word times are not known
    speech: list[tuple[float, float, str, bool]] = field(default_factory=list)  # start, end, voice, seen
    overlay: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def spoken(self) -> list[tuple[float, float, str, bool]]:
        """(start, end, voice, seen) of all speech: of words, or of recordings without times of words."""
        return [(word.start_s, word.end_s, word.voice, word.seen) for word in self.words] or self.speech


DEVELOPMENT_DRAW = 20_181  # of the videos that limits were chosen on; other draws judge


class Film:
    """A film that is put together shot by shot, then written with its truth."""

    draw = DEVELOPMENT_DRAW  # of all films

    def __init__(self, name: str, kind: str, seed: int, fps: float = 25.0) -> None:
        self.truth = Truth(name, kind, fps=fps)
        self.rng, self.fps = np.random.default_rng([self.draw, seed]), fps
        self.shots: list[np.ndarray] = []
        self.sounds: list[np.ndarray] = []
        self._look: tuple[str, ...] = ()

    @property
    def at_s(self) -> float:
        """Where the next shot begins."""
        return sum(map(len, self.shots)) / self.fps

    def talk(
        self,
        seconds: float,
        voices: Sequence[str],
        faces: Sequence[str] | None = None,
        lips: str = "own",
        wall: str = "",
        turn_words: tuple[int, int] = (3, 6),
    ) -> None:
        """A shot in which voices take turns. `faces`: voices whose faces are seen, those that speak unless
        given, () for scenery. `lips`: own; other (words of another recording, spoken at other times), dubbed
        (other words in the same turns), late (0.4 s behind the sound), still."""
        faces = list(dict.fromkeys(voices)) if faces is None else list(faces)
        count = round(seconds * self.fps)
        turns = self._turns(seconds, voices, turn_words)
        by_voice = {voice: self._spoken(turns, voice, seconds) for voice in {*voices, *faces}}
        self._cut()
        if faces:
            moved = {voice: self._moved(by_voice, voice, turns, lips, seconds) for voice in faces}
            faces, wall = self._another_look(faces, wall)
            self.shots.append(self._faces(faces, moved, wall, count))
        else:
            self.shots.append(scene(seconds, int(self.rng.integers(1 << 20)), self.fps, (SIDE, SIDE))[:count])
        start_s = self.at_s - count / self.fps
        for word, voice, begin, end, _ in turns:
            seen = voice in faces and lips == "own"
            self.truth.words.append(TrueWord(word, voice, start_s + begin, start_s + end, seen))
        self.sounds.append(np.stack(list(by_voice.values())).sum(axis=0).astype(np.float32))

    def _another_look(self, faces: list[str], wall: str) -> tuple[list[str], str]:
        """Faces and a wall that do not look like the shot before: a cut between equal pictures is none."""
        if len(faces) == 2:
            wall = wall or WALL_OF_TWO
            if (*(FACE_OF[voice] for voice in faces), wall) == self._look:
                faces = faces[::-1]
        while not wall or (wall, FACE_OF[faces[0]]) == self._look:
            wall = str(self.rng.choice(WALLS))
        self._look = (
            (*(FACE_OF[voice] for voice in faces), wall) if len(faces) == 2 else (wall, FACE_OF[faces[0]])
        )
        return faces, wall

    def scenery(self, seconds: float) -> None:
        """A shot without speech."""
        self._cut()
        count = round(seconds * self.fps)
        self.shots.append(scene(seconds, int(self.rng.integers(1 << 20)), self.fps, (SIDE, SIDE))[:count])
        self.sounds.append(np.zeros(round(count / self.fps * RATE_HZ), np.float32))

    def _cut(self) -> None:
        if self.shots:
            self.truth.cuts.append((self.at_s, self.at_s))

    def flash(self, frames: int = 2) -> None:
        """The middle of the last shot turns white for some pictures; no change of scene."""
        middle = len(self.shots[-1]) // 2 + int(self.rng.integers(-4, 5))
        self.shots[-1][middle : middle + frames] = 255

    def dissolve(self, seconds: float = 0.8) -> None:
        """The last two shots overlap."""
        count = round(seconds * self.fps)
        before, after = self.shots[-2], self.shots[-1]
        mix = np.linspace(0, 1, count)[:, None, None, None]
        tail = before[-count:] * (1 - mix) + np.repeat(after[:1], count, axis=0) * mix
        before[-count:] = tail.astype(np.uint8)
        at_s = self.truth.cuts[-1][0]
        self.truth.cuts[-1] = (at_s - seconds, at_s)

    def fade(self, seconds: float = 0.6) -> None:
        """Through black between the last two shots."""
        count = round(seconds * self.fps / 2)
        mix = np.linspace(1, 0, count)[:, None, None, None]
        self.shots[-2][-count:] = (self.shots[-2][-count:] * mix).astype(np.uint8)
        self.shots[-1][:count] = (self.shots[-1][:count] * mix[::-1]).astype(np.uint8)
        at_s = self.truth.cuts[-1][0]
        self.truth.cuts[-1] = (at_s - seconds / 2, at_s + seconds / 2)

    def subtitles(self) -> None:
        """White letters with a black edge burnt in below, other ones every two seconds."""
        words = [word.word for word in self.truth.words]
        number = 0
        for shot in self.shots:
            for frame in shot:
                second = int(number / self.fps / 2)
                text = " ".join(words[2 * second % len(words) : 2 * second % len(words) + 2])
                for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                    cv2.putText(
                        frame,
                        text,
                        (14, SIDE - 14),
                        cv2.FONT_HERSHEY_SIMPLEX,
                        0.5,
                        colour,
                        width,
                        cv2.LINE_AA,
                    )
                number += 1
        self.truth.overlay = True

    def write(self, folder: Path, add: np.ndarray | None = None, stereo: bool = False) -> Path:
        """Writes the film; `add`: a sound [N] under the speech."""
        frames = np.concatenate(self.shots)
        self.truth.seconds = len(frames) / self.fps
        length = round(self.truth.seconds * RATE_HZ)
        sound = np.concatenate(self.sounds)[:length]
        sound = np.pad(sound, (0, length - len(sound))) * 0.7
        sound = sound + self.rng.standard_normal(length).astype(np.float32) * np.float32(
            10 ** (NOISE_DB / 20)
        )
        if add is not None:
            sound = sound + np.resize(add, length)
        waveform = np.clip(sound, -1, 1).astype(np.float32)
        path = folder / f"{self.truth.name}.mp4"
        write_mp4(
            path, frames, self.fps, np.stack([waveform, waveform * 0.8]) if stereo else waveform, RATE_HZ
        )
        return path

    def _turns(
        self, seconds: float, voices: Sequence[str], turn_words: tuple[int, int]
    ) -> list[tuple[str, str, float, float, int]]:
        """(word, voice, start, end, take) of turns that fit between the edges of a shot."""
        found: list[tuple[str, str, float, float, int]] = []
        at_s, turn, last = EDGE_S + float(self.rng.uniform(0, 0.2)), 0, ""
        while True:
            voice = voices[turn % len(voices)]
            for _ in range(int(self.rng.integers(*turn_words))):
                word = str(self.rng.choice([word for word in load_bank().words if word != last]))
                takes = load_bank().utterances[word, voice]
                take = int(self.rng.integers(len(takes)))
                end_s = at_s + len(takes[take].waveform) / RATE_HZ
                if end_s > seconds - EDGE_S:
                    return found
                found.append((word, voice, at_s, end_s, take))
                last, at_s = word, end_s + float(self.rng.uniform(*WORD_GAP_S))
            at_s, turn = at_s + float(self.rng.uniform(*TURN_GAP_S)), turn + 1

    def _spoken(
        self, turns: list[tuple[str, str, float, float, int]], voice: str, seconds: float
    ) -> np.ndarray:
        track = np.zeros(round(round(seconds * self.fps) / self.fps * RATE_HZ), np.float32)
        for word, who, start_s, _, take in turns:
            if who == voice:
                sound = load_bank().utterances[word, voice][take].waveform
                first = round(start_s * RATE_HZ)
                track[first : first + len(sound)] += sound[: len(track) - first]
        return track

    def _moved(
        self,
        by_voice: dict[str, np.ndarray],
        voice: str,
        turns: list[tuple[str, str, float, float, int]],
        lips: str,
        seconds: float,
    ) -> np.ndarray:
        """The sound that the mouth of a face follows."""
        own = by_voice[voice]
        if lips == "own":
            return own
        if lips == "still":
            return np.zeros_like(own)
        if lips == "late":
            shift = round(0.4 * RATE_HZ)
            return np.concatenate([np.zeros(shift, np.float32), own[:-shift]])
        if lips == "other":
            return self._spoken(self._turns(seconds, [voice], (3, 6)), voice, seconds)
        return self._dubbed(turns, voice, seconds)

    def _dubbed(
        self, turns: list[tuple[str, str, float, float, int]], voice: str, seconds: float
    ) -> np.ndarray:
        """Other words within the same turns, as a dubbed film has them."""
        spans: list[list[float]] = []
        for _, _, start_s, end_s, _ in turns:
            if spans and start_s - spans[-1][1] < TURN_GAP_S[0] - WORD_GAP_S[1]:
                spans[-1][1] = end_s
            else:
                spans.append([start_s, end_s])
        other: list[tuple[str, str, float, float, int]] = []
        for start_s, end_s in spans:
            at_s = start_s
            while at_s < end_s - 0.2:
                word = str(self.rng.choice(load_bank().words))
                length = len(load_bank().utterances[word, voice][0].waveform) / RATE_HZ
                other.append((word, voice, at_s, at_s + length, 0))
                at_s += length + float(self.rng.uniform(*WORD_GAP_S))
        return self._spoken(other, voice, seconds)

    def _faces(
        self, voices: Sequence[str], sounds: dict[str, np.ndarray], wall: str, count: int
    ) -> np.ndarray:
        """uint8 [count, SIDE, SIDE, 3]."""
        places = [SINGLE] if len(voices) == 1 else [LEFT, RIGHT]
        faces = tuple(Face(FACE_OF[voice], *place) for voice, place in zip(voices, places, strict=True))
        openings = np.stack([mouth_curve(sounds[voice], count, self.fps) for voice in voices])
        times = (np.arange(count) + 0.5) / self.fps
        starts = self.rng.uniform(0, times[-1], (len(voices), max(1, count // 60), 1))
        blinks = np.any((times >= starts) & (times < starts + 0.12), axis=1)
        small = render_faces(faces, wall, openings, blinks)
        return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for frame in small])


def mouth_curve(sound: np.ndarray, count: int, fps: float) -> np.ndarray:
    """float32 [count] in 0..1: how far a mouth that says [N] at 16 kHz is open, as in the corpus."""
    energy = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    edges = np.minimum(np.round(np.arange(count + 1) / fps * RATE_HZ).astype(int), len(sound))
    power = np.maximum(np.diff(energy[edges]), 0) / np.maximum(np.diff(edges), 1)
    loudness = np.sqrt(power)
    return ((loudness / max(float(loudness.max()), 1e-6)) ** 0.8).astype(np.float32)


def music(seconds: float, seed: int, level: float = 0.2) -> np.ndarray:
    """float32 [N]: chords of decaying harmonics with a beat."""
    rng, length = np.random.default_rng([7, seed]), round(seconds * RATE_HZ)
    time, sound = np.arange(length) / RATE_HZ, np.zeros(length)
    for start in np.arange(0, seconds, 0.5):
        since = time - start
        on = since >= 0
        for note in rng.choice([110, 131, 147, 165, 196, 220, 262, 294, 330], 3, replace=False):
            for partial in (1, 2, 3, 4):
                envelope = np.where(on, np.exp(-since / (0.6 / partial)), 0)
                sound += np.sin(2 * np.pi * note * partial * since) * envelope / partial
    return (sound / np.abs(sound).max() * level).astype(np.float32)


VOICES = tuple(character.voice for character in CHARACTERS)
