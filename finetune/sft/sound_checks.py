"""Whether the speech of a set can be trained on: its sound is there, is not muted, and is long enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from finetune.sft.config import SoundConfig
from pretrain.data.manifest import ManifestRow
from pretrain.data.stream.sample import Sample
from pretrain.media.read import read_media
from pretrain.prompt import parse
from pretrain.storage import local_file
from pretrain.types import (
    AUDIO_SAMPLE_RATE_HZ,
    AUDIO_TOKENS_PER_S,
    VIDEO_FRAMES_PER_LATENT,
    num_audio_tokens,
)

_Item = TypeVar("_Item")
_READERS = 4
_STILL = 1e-3  # change of latents over time, in standard deviations of the corpus; speech has about 1


@dataclass(frozen=True)
class BadSound:
    """What is wrong with the sound of one clip."""

    kind: str  # missing, muted or cut off
    name: str  # the file, or a data id
    detail: str


@dataclass(frozen=True)
class SoundReport:
    """Of the clips of a set with speech that were looked at."""

    where: str
    clips: int
    findings: tuple[BadSound, ...]

    def __str__(self) -> str:
        counts = Counter(finding.kind for finding in self.findings)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        first = self.findings[0]
        return (
            f"the sound of {len(self.findings)} of {self.clips} clips with speech cannot be trained on "
            f"({kinds}); the first: {first.name} ({first.kind}: {first.detail})"
        )

    def check(self, config: SoundConfig) -> str:
        """A notice, "" for none. Raises ValueError for more bad clips than `max_bad` allows."""
        if not self.findings:
            return ""
        if len(self.findings) > config.max_bad * self.clips:
            raise ValueError(
                f"{self.where}: {self}; at most {config.max_bad:.0%} may be: give clips with their sound, "
                "raise finetune.sound.max_bad, or set finetune.sound.required=false for the picture alone"
            )
        return f"{self.where}: {self}; it is trained on as it is"


def of_rows(where: str, rows: Sequence[ManifestRow], config: SoundConfig) -> SoundReport:
    """By the media of rows with speech."""
    spoken = [row for row in rows if parse(row.text).spans]
    looked_at = list(spread(spoken, config.checked))
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda row: _of_row(row, config), looked_at)
        return SoundReport(where, len(looked_at), tuple(one for one in found if one))


def of_samples(where: str, samples: Iterable[Sample]) -> SoundReport:
    """By the latents of encoded clips, those with speech."""
    spoken = [sample for sample in samples if len(sample.speaker_positions)]
    return SoundReport(where, len(spoken), tuple(one for one in map(_of_sample, spoken) if one))


def spread(items: Sequence[_Item], at_most: int) -> Iterator[_Item]:
    """Up to that many, at equal distances."""
    step = max(len(items) / at_most, 1.0)
    return (items[int(number * step)] for number in range(min(len(items), at_most)))


def _of_row(row: ManifestRow, config: SoundConfig) -> BadSound | None:
    name = f"{row.data_path} (line {row.line})"
    try:
        with local_file(Path(row.data_path)) as local:
            media = read_media(local, want_video=False, sample_rate_hz=AUDIO_SAMPLE_RATE_HZ)
    except (ValueError, OSError) as error:
        return BadSound("missing", name, str(error).removeprefix(f"{row.data_path}: "))
    waveform = media.waveform
    if waveform is None or not waveform.size:
        return BadSound("missing", name, "no audio stream")
    seconds, missing_s = waveform.size / AUDIO_SAMPLE_RATE_HZ, media.mended.get("silence_s", 0.0)
    end_s = max((*row.speech_end_s, row.duration_s))
    if seconds - missing_s < end_s - config.tolerance_s:
        return BadSound("cut off", name, f"{seconds - missing_s:.2f} s of sound for {end_s:.2f} s")
    level_db = 20 * np.log10(max(_level(waveform, row), 1e-10))
    if level_db < config.muted_db:
        return BadSound("muted", name, f"{level_db:.0f} dB where it speaks")
    return None


def _level(waveform: np.ndarray, row: ManifestRow) -> float:
    """Root mean square where the row speaks, all of it where it does not say when."""
    marks = [round(at * AUDIO_SAMPLE_RATE_HZ) for at in (*row.speech_start_s, *row.speech_end_s)]
    half = len(marks) // 2
    pieces = [waveform[start:end] for start, end in zip(marks[:half], marks[half:], strict=True)]
    spoken = np.concatenate(pieces) if pieces else waveform
    return float(np.sqrt(np.mean(np.square(spoken, dtype=np.float64)))) if spoken.size else 0.0


def _of_sample(sample: Sample) -> BadSound | None:
    if sample.audio is None:
        return BadSound("missing", sample.data_id, "encoded without sound")
    tokens = sample.audio.shape[1]
    if sample.video is not None:
        frames = 1 + VIDEO_FRAMES_PER_LATENT * (sample.video.shape[1] - 1)
        wanted = num_audio_tokens(frames, sample.video_rate_hz * VIDEO_FRAMES_PER_LATENT)
        if abs(tokens - wanted) > 1:
            seconds = (tokens / AUDIO_TOKENS_PER_S, wanted / AUDIO_TOKENS_PER_S)
            return BadSound("cut off", sample.data_id, "{:.2f} s of sound for {:.2f} s".format(*seconds))
    if tokens > 1 and float(sample.audio.std(1).mean()) < _STILL:
        return BadSound("muted", sample.data_id, "its latents do not change")
    return None
