"""All of one source: read, cut into clips, each clip through the steps. A pure function of the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preparation.config import PrepareConfig
from experiments.preparation.cutting import STEP, Leftover, Lengths, Piece, padded_words, plan
from experiments.preparation.pieces import CutPiece, cut_pieces
from experiments.preparation.records import (
    SPEECH_RATE_HZ,
    GivenText,
    Heard,
    RawClip,
    RawVideo,
    Rejection,
    Stretch,
    Word,
)
from experiments.preparation.subtitles import within_sound
from experiments.preparation.words import MISALIGNED, loud_speech
from pretrain.config import one_line
from pretrain.media.channels import mixed
from pretrain.media.errors import MediaError
from pretrain.media.limits import MediaLimits
from pretrain.media.passing import PassingPictures
from pretrain.media.picture_times import PictureTimes
from pretrain.media.read import Media, read_media
from pretrain.media.samples import to_rate
from rewards.plugins import KINDS, load

LOST = (ConnectionError, MemoryError)  # not the file's fault: the run ends, and goes on later
MIN_SCENE_S = 0.04


class Stopwatch:
    """CPU seconds of this process by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begun


@dataclass(frozen=True)
class Settings:
    """What decides about a source besides its file."""

    config: PrepareConfig
    fps: float
    only: tuple[int, ...] = ()  # lengths of buckets in frames

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.fps, self.config.min_s, self.config.max_s, self.only)


@dataclass(eq=False)
class VideoOutcome:
    """What became of a source. `take(clip or rejection)` was called for each clip in order."""

    seconds: float = 0.0
    scenes: list[float] = field(default_factory=list)  # boundaries, seconds
    words: list[Word] = field(default_factory=list)
    words_by: str = ""
    rejected: list[Rejection] = field(default_factory=list)
    stage_s: dict[str, float] = field(default_factory=dict)


Take = Callable[[RawClip | Rejection], None]


def check_steps(config: PrepareConfig) -> None:
    """Raises ValueError for a step that may not be imported or is none."""
    for name in (config.scenes, config.activity, config.words, *config.steps):
        _step(name)


def work_on(source: RawVideo, settings: Settings, take: Take) -> VideoOutcome:
    """Hands every clip of a source, kept or rejected, to `take`. What is wrong with the file is a rejection;
    raises OSError of writing, and ConnectionError where a server is gone."""
    outcome, watch = VideoOutcome(), Stopwatch()
    try:
        _work(source, settings, take, outcome, watch)
    except MediaError as error:
        outcome.rejected.append(_of_source(source, "read", "file", one_line(error, 400)))
    except LOST:
        raise
    except OSError as error:
        if error.filename is None or Path(str(error.filename)) != source.path:
            raise
        outcome.rejected.append(_of_source(source, "read", "file", one_line(error, 400)))
    except Exception as error:  # a decoder may raise anything on rubbish: one source is lost, with its reason
        stage = "read" if isinstance(error, ValueError) else "error"
        outcome.rejected.append(
            _of_source(source, stage, "file", one_line(error, 400) or type(error).__name__)
        )
    outcome.stage_s = watch.seconds
    return outcome


def _of_source(source: RawVideo, stage: str, measure: str, reason: str) -> Rejection:
    return Rejection(stage, measure, None, None, reason, source=source.name)


def _work(source: RawVideo, settings: Settings, take: Take, outcome: VideoOutcome, watch: Stopwatch) -> None:
    config = settings.config
    limits = MediaLimits(seconds=config.max_source_s)
    with watch.stage("sound"):
        sound = read_media(
            source.path, sample_rate_hz=None, want_video=False, want_audio=True, channels=2, limits=limits
        )
        assert sound.waveform is not None
        waveform = sound.waveform[:1] if np.array_equal(*sound.waveform) else sound.waveform
        mono = to_rate(mixed(waveform, 1), sound.sample_rate_hz, SPEECH_RATE_HZ)
    outcome.seconds = waveform.shape[1] / sound.sample_rate_hz
    with watch.stage("speech"):
        speech = list(_step(config.activity)(mono))
    if sum(end - start for start, end in speech) < config.min_speech_s:
        found = sum(end - start for start, end in speech)
        reason = "no speech in it; prepare.min_speech_s=0 keeps clips without any"
        limit = config.min_speech_s
        outcome.rejected.append(
            Rejection(
                "speech", "speech_s", round(found, 3), limit, reason, source.name, "", 0.0, outcome.seconds
            )
        )
        return
    given = source.given
    if given.cues:
        cues, outside = within_sound(given.cues, outcome.seconds, source.name)
        outcome.rejected += outside
        if not cues:
            return
        given = replace(given, cues=cues)
    with watch.stage("words"):
        heard, given = _heard(mono, speech, given, config)
    outcome.words, outcome.words_by = list(heard.words), heard.by
    with watch.stage("scenes"):
        scenes, shown = _scenes(source.path, config, limits, outcome)
    blocked = [*padded_words((word.start_s, word.end_s) for word in heard.words)]
    if heard.words:  # without any, what sounds like speech is music, noise or unknown, which `spoken` says
        blocked += loud_speech(mono, heard.speech)
    pieces: list[Piece] = []
    for scene in scenes:
        for part in plan(scene, blocked, settings.lengths, config.pause_s):
            if isinstance(part, Piece):
                pieces.append(part)
            elif part.end_s - part.start_s > STEP / settings.fps:
                outcome.rejected.append(_left(source, part, settings))
    context = _Context(source, heard, given, waveform, sound, settings)
    with watch.stage("cut"):
        cuts = cut_pieces(source.path, pieces, shown, settings.fps, config.max_side, limits)
        for number, cut in enumerate(cuts):
            _through_steps(context.clip(number, cut), config, outcome, take, watch)


def _heard(
    mono: np.ndarray, speech: Sequence[Stretch], given: GivenText, config: PrepareConfig
) -> tuple[Heard, GivenText]:
    """Words, and the given text as what it turned out to be: a transcript where it can be aligned."""
    find = _step(config.words)
    heard = find(mono, speech, given, config)
    if given.transcript and heard.by == MISALIGNED and config.text_beside == "auto":
        given = replace(given, transcript="", caption=given.transcript)
        heard = find(mono, speech, given, config)
    return heard, given


def _scenes(
    path: Path, config: PrepareConfig, limits: MediaLimits, outcome: VideoOutcome
) -> tuple[list[Stretch], PictureTimes]:
    detector, passing = _step(config.scenes)(config), PassingPictures(path, limits)
    for picture in passing:
        detector.see(picture)
    shown = passing.shown
    times, cuts = shown.times.tolist(), detector.cuts()
    end_s = min(shown.end_s, max(outcome.seconds, times[0] + 1.0 / shown.nominal))
    outcome.scenes = [round(times[cut.first], 4) for cut in cuts]
    starts = [times[0], *(times[cut.first] + config.trim_gradual_s * cut.gradual for cut in cuts)]
    ends = [*(times[cut.first] - config.trim_gradual_s * cut.gradual for cut in cuts), end_s]
    scenes = [
        (start, min(end, end_s)) for start, end in zip(starts, ends, strict=True) if end - start > MIN_SCENE_S
    ]
    return scenes, shown


def _left(source: RawVideo, part: Leftover, settings: Settings) -> Rejection:
    seconds = part.end_s - part.start_s
    limit = settings.config.min_s
    return Rejection(
        "length", "seconds", round(seconds, 3), limit, part.reason, source.name, "", part.start_s, seconds
    )


@dataclass(frozen=True, eq=False)
class _Context:
    source: RawVideo
    heard: Heard
    given: GivenText
    waveform: np.ndarray
    sound: Media
    settings: Settings

    @property
    def rate_hz(self) -> int:
        return self.sound.sample_rate_hz

    def clip(self, number: int, cut: CutPiece) -> RawClip:
        piece, start_s, fps = cut.piece, cut.piece.start_s, self.settings.fps
        mended = {**cut.mended, **{f"source_{name}": value for name, value in self.sound.mended.items()}}
        end_s = start_s + piece.num_frames / fps
        first, count = round(start_s * self.rate_hz), round(piece.num_frames / fps * self.rate_hz)
        sound = self.waveform[:, max(0, first) : max(0, first) + count]
        words = tuple(
            replace(word, start_s=max(0.0, word.start_s - start_s), end_s=min(end_s, word.end_s) - start_s)
            for word in self.heard.words
            if start_s <= (word.start_s + word.end_s) / 2 < end_s
        )
        speech = tuple(
            (max(start, start_s) - start_s, min(end, end_s) - start_s)
            for start, end in self.heard.speech
            if min(end, end_s) > max(start, start_s)
        )
        return RawClip(
            data_id=f"{self.source.data_id}-{number:04d}",
            source=self.source.name,
            start_s=start_s,
            fps=fps,
            frames=cut.frames,
            waveform=np.pad(sound, ((0, 0), (0, max(0, count - sound.shape[1])))),
            rate_hz=self.rate_hz,
            given=self.given,
            words=words,
            speech=speech,
            words_by=self.heard.by,
            labels={"mended": mended} if mended else {},
        )


def _through_steps(
    clip: RawClip, config: PrepareConfig, outcome: VideoOutcome, take: Take, watch: Stopwatch
) -> None:
    at: RawClip | Rejection = clip
    for name in config.steps:
        assert isinstance(at, RawClip)
        stage = name.partition(":")[2]
        with watch.stage(stage):
            try:
                found = _step(name)(at, config)
            except (*LOST, OSError):
                raise
            except Exception as error:  # a step may be anybody's; one clip is lost, with its reason
                found = Rejection(
                    stage, "error", None, None, f"{type(error).__name__}: {one_line(error, 300)}"
                )
        if isinstance(found, Rejection):
            found = replace(
                found,
                source=clip.source,
                data_id=clip.data_id,
                start_s=clip.start_s,
                duration_s=clip.duration_s,
                clip=at,
            )
            outcome.rejected.append(found)
            at = found
            break
        at = found
    with watch.stage("write"):
        take(at)


def _step(name: str) -> Any:
    return load(name, KINDS["prepare"], f"prepare: {name!r}")
