"""From cases of a benchmark to rows of prompts that can be made, and why others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.paper.layouts import BenchItem
from pretrain.clip_kind import check_memory, check_sound
from pretrain.codecs.base import Codecs
from pretrain.first_frames import check_first_frames, read_first_frames
from pretrain.generation.conditions import check_texts, reference_voices
from pretrain.generation.config import GenerateConfig
from pretrain.generation.jobs import clip_jobs
from pretrain.jsonl import FieldError
from pretrain.media.errors import MediaError
from pretrain.media.read import probe
from pretrain.progress import track
from pretrain.prompt import PromptRow
from pretrain.prompt.rows import prompt_row
from pretrain.types import MAX_FRAMES, VIDEO_FRAMES_PER_LATENT

CasePrompt = Callable[[BenchItem], dict[str, Any]]
LETTERS_PER_S = {"en": 15.0, "zh": 4.5}  # letters and digits of read speech, blanks not counted
MOST_OFF = 2.0  # times that a voice may be slower or faster than that


def scene_prompt(item: BenchItem) -> dict[str, Any]:
    """Of Verse-Bench: the scene, its sounds, and what is said; the image is the first frame."""
    parts = [_sentence(item.prompt)]
    if item.sounds:
        parts.append(_sentence(f"Sound: {'; '.join(item.sounds)}"))
    if item.speech.strip():
        parts.append(f"The speaker says: <S>{item.speech.strip()}<E>.")
    row: dict[str, Any] = {"data_id": item.name, "prompt": " ".join(part for part in parts if part)}
    return row | ({"image_path": str(item.image.resolve())} if item.image else {})


def text_prompt(item: BenchItem) -> dict[str, Any]:
    """Of JavisBench: its text as it is."""
    return {"data_id": item.name, "prompt": item.prompt}


def speech_prompt(language: str, fps: float, seconds: float | None) -> CasePrompt:
    """Of Seed-TTS eval: the text in the voice of the prompt sound.

    seconds: of every clip; None = as long as the voice would take, at the rate of letters that its own sound
    and text give, within `MOST_OFF` of `LETTERS_PER_S`.
    """

    def prompt(item: BenchItem) -> dict[str, Any]:
        row: dict[str, Any] = {
            "data_id": item.name,
            "prompt": f"A person says: <S>{item.speech.strip()}<E>.",
        }
        if item.voice is not None:
            row["spk_wavs"] = [str(item.voice.resolve())]
        if seconds is None:
            row["num_frames"] = frames_of_speech(item, language, fps)
        return row

    return prompt


def frames_of_speech(item: BenchItem, language: str, fps: float) -> int:
    """1 + 4n frames, enough for what is said."""
    rate, heard = LETTERS_PER_S[language], _letters(item.voice_text)
    if heard and (seconds := _seconds(item.voice)):
        rate = min(max(heard / seconds, rate / MOST_OFF), rate * MOST_OFF)
    step = VIDEO_FRAMES_PER_LATENT
    count = 1 + step * max(1, -(-int(_letters(item.speech) / rate * fps) // step))
    return min(count, 1 + (MAX_FRAMES - 1) // step * step)


class CaseCheck:
    """Tells which cases can be made: each is checked as `nava generate` checks all rows."""

    def __init__(self, codecs: Codecs, config: GenerateConfig, file: Path) -> None:
        self.codecs, self.config, self.file = codecs, config, file
        self._voices: dict[Path, Tensor] = {}

    def sorted_out(
        self, items: Sequence[BenchItem], prompt: CasePrompt
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Rows of the cases that can be made, and by name why others cannot."""
        rows: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        for item in track(items, len(items), "cases checked"):
            try:
                row = prompt(item)
                self._check(row, len(rows) + 1, item)
            except (ValueError, OSError) as error:
                reasons[item.name] = self._said(error, len(rows) + 1)
            else:
                rows.append(row)
        return rows, reasons

    def _check(self, row: Mapping[str, Any], line: int, item: BenchItem) -> None:
        errors: list[FieldError] = []
        found = prompt_row(row, line, self.file, errors)
        if found is None:
            raise ValueError(f"{errors[0].field}: {errors[0].message}")
        if len(found.prompt.spans) != bool(item.speech.strip()):
            raise ValueError("prompt: has speech marks of its own")
        asked = [job.row for job in clip_jobs([found], self.config)]
        self._check_files(asked)
        check_texts(asked, self.codecs)
        check_memory(asked, self.config, self.config.fps)
        check_sound(asked, self.config, self.config.fps)

    def _check_files(self, rows: Sequence[PromptRow]) -> None:
        for path in (path for row in rows for path in (row.image_path, *row.reference_paths)):
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"{path.name}: no such file")
        check_first_frames(rows, self.config, self.config.fit)
        read_first_frames(rows)
        new = [row for row in rows if any(path not in self._voices for path in row.reference_paths if path)]
        self._voices |= reference_voices(new, self.file, self.codecs)

    def _said(self, error: Exception, line: int) -> str:
        return str(error).replace(f"{self.file}:{line}", "").lstrip(": ")


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?。！？" else f"{text}."


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _seconds(path: Path | None) -> float:
    """Of a sound, 0 where it cannot be told."""
    try:
        return float(probe(path).duration_s or 0.0) if path is not None and path.is_file() else 0.0
    except MediaError:
        return 0.0
