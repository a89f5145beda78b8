"""The file layouts of Verse-Bench and Seed-TTS eval, read as their own scripts read them.

Verse-Bench: BENCH/set1..set3/NAME.json (also in set*/data) with `video_prompt`, `audio_prompt` (list of
texts) and `speech_prompt.text`; beside it, or in set*/clips, NAME.jpg (reference image) and in set2 NAME.wav
(reference sound). Results: NAME.mp4 and NAME.wav in one folder. Seed-TTS eval: a meta.lst of `|`-separated
lines, prompt sounds relative to its folder; results: UTT.wav in one folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.scoring.clips import ClipFile
from pretrain.files import read_json, text_lines
from pretrain.prompt.characters import caseless
from rewards.media_folder import VIDEO_SUFFIXES, scan_folder

SETS = ("set1", "set2", "set3")
IMAGES, SOUNDS = (".jpg", ".jpeg", ".png"), (".wav", ".mp3", ".m4a")
VIDEOS = (".mp4", *sorted(VIDEO_SUFFIXES - {".mp4"}))
META_FIELDS = {
    2: ("name", "text"),
    3: ("name", "text", "voice"),
    4: ("name", "prompt_text", "voice", "text"),
    5: ("name", "prompt_text", "voice", "text", "truth"),
}
META_FORM = "utt_id|prompt_text|prompt_wav|infer_text"
SHORT_FIELDS = 3  # at most, of lines without prompt_text
META_COLUMNS = {"name": "utt_id", "voice": "prompt_wav", "text": "infer_text"}


@dataclass(frozen=True)
class BenchItem:
    """One case of a benchmark with the clip that answers it; `video` and `sound` are None where there is no
    such file."""

    name: str
    subset: str
    speech: str = ""
    sounds: tuple[str, ...] = ()  # texts that describe the sound apart from speech
    prompt: str = ""
    image: Path | None = None
    reference_sound: Path | None = None
    voice: Path | None = None
    voice_text: str = ""  # what is said in `voice`, where that is known
    video: Path | None = None
    sound: Path | None = None
    reason: str = ""  # why there is no clip, where that is known

    @property
    def key(self) -> str:
        return f"{self.subset}/{self.name}"

    def video_file(self) -> ClipFile | None:
        return self._file(self.video, self.prompt, sound_only=False)

    def sound_file(self) -> ClipFile | None:
        """With the text of the sound as its prompt, as the benchmark compares them."""
        return self._file(self.sound, self.sounds[0] if self.sounds else "", sound_only=True)

    def _file(self, path: Path | None, prompt: str, sound_only: bool) -> ClipFile | None:
        if path is None:
            return None
        return ClipFile(
            name=self.key,
            path=path,
            prompt=prompt,
            spans=(self.speech,) if self.speech.strip() else (),
            references=(self.voice,),
            first_frame=self.image,
            reference_sound=self.reference_sound,
            group=self.key,
            sound_only=sound_only,
        )


def read_verse_bench(root: Path, clips: Path | None) -> list[BenchItem]:
    """Every case of set1 to set3 in order; clips: None where they are not made yet.

    Raises FileNotFoundError or ValueError in one line for missing or wrong files, and for two cases of one
    name, whose clips would be one file.
    """
    check_clips(clips)
    items: list[BenchItem] = []
    seen: dict[str, Path] = {}
    for path in (path for name in SETS for path in _verse_bench_files(root / name)):
        if (other := seen.setdefault(caseless(path.stem), path)) is not path:
            raise ValueError(
                f"{path}: {other} has the same name, and clips are called by it; get the data set again"
            )
        items.append(_verse_bench_item(path))
    if not items:
        raise FileNotFoundError(
            f"{root}: no set1, set2 or set3 with NAME.json; give the folder of the data set dorni/Verse-Bench"
        )
    return answered(items, clips)


def read_seed_tts(meta: Path, clips: Path | None) -> list[BenchItem]:
    """Every line of a meta.lst; the sound is UTT.wav, or that of UTT.mp4. Raises as `read_verse_bench`,
    naming file and line."""
    check_clips(clips)
    if not meta.is_file():
        raise FileNotFoundError(f"{meta}: no such file; give the folder of the Seed-TTS test set, or --meta")
    items: list[BenchItem] = []
    seen: dict[str, int] = {}
    lines = text_lines(meta)
    for number, line in lines:
        row = _seed_tts_row(meta, number, line, lines[0])
        name = row["name"]
        if name in seen:
            raise ValueError(
                f"{meta}:{number}: {name!r} is there twice, first on line {seen[name]}; keep one"
            )
        seen[name] = number
        items.append(
            BenchItem(
                name,
                meta.parent.name or "all",
                row["text"],
                prompt=row["text"],
                voice=meta.parent / row["voice"] if "voice" in row else None,
                voice_text=row.get("prompt_text", ""),
            )
        )
    if not items:
        raise ValueError(f"{meta}: the file is empty; expected {META_FORM}")
    return answered(items, clips)


def _seed_tts_row(meta: Path, number: int, line: str, first: tuple[int, str]) -> dict[str, str]:
    """Columns of a line by name, without blanks around them. Raises ValueError `file:line: ...`.

    Lines with prompt_text (4 or 5 columns) and without (2 or 3) are of different tasks, so a file that has
    both has lines that lack a column.
    """
    fields = [field.strip() for field in line.split("|")]
    if len(fields) not in META_FIELDS:
        raise ValueError(
            f"{meta}:{number}: {len(fields)} fields; expected 2 to 5, {META_FORM}[|infer_wav], a case a line"
        )
    others = first[1].count("|") + 1
    if (len(fields) > SHORT_FIELDS) != (others > SHORT_FIELDS):
        raise ValueError(
            f"{meta}:{number}: {len(fields)} fields, but line {first[0]} has {others}; a column is missing "
            f"in one of them, expected {META_FORM}"
        )
    row = dict(zip(META_FIELDS[len(fields)], fields, strict=True))
    row["name"] = row["name"].removesuffix(".wav")
    for column in ("name", "voice", "text"):
        if column in row and not row[column]:
            raise ValueError(f"{meta}:{number}: {META_COLUMNS[column]} is blank; expected {META_FORM}")
    return row


def left_out(clips: Path, items: Sequence[BenchItem]) -> dict[str, int]:
    """What lies in the folder of the clips and answers no case: kind -> how many."""
    found = scan_folder(clips, subfolders=False)
    used = {path for item in items for path in (item.video, item.sound)}
    unused = Counter(f"{path.suffix.lower()} of no case" for path in found.files if path not in used)
    return dict(sorted((Counter(found.left_out) + unused).items()))


def answered(
    items: Sequence[BenchItem], clips: Path | None, reasons: Mapping[str, str] | None = None
) -> list[BenchItem]:
    """The cases with their clips, NAME.mp4 and NAME.wav of a folder, the sound by default the video's.

    reasons: by name, why a case has none, whatever lies there.
    """
    found = []
    for item in items:
        reason = (reasons or {}).get(item.name, "")
        there = None if reason else clips
        video = there and _first(there, item.name, VIDEOS)
        sound = (there and _first(there, item.name, (".wav",))) or video
        found.append(replace(item, video=video, sound=sound, reason=reason))
    return found


def _verse_bench_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.json"), *(folder / "data").glob("*.json")])


def _verse_bench_item(path: Path) -> BenchItem:
    content = read_json(path, "get the data set again")
    folder = path.parent.parent if path.parent.name == "data" else path.parent
    places = list(dict.fromkeys([path.parent, folder, folder / "clips"]))
    images = (found for place in places if (found := _first(place, path.stem, IMAGES)))
    sounds = (found for place in places if (found := _first(place, path.stem, SOUNDS)))
    return BenchItem(
        name=path.stem,
        subset=folder.name,
        speech=_speech(content, path),
        sounds=_sounds(content, path),
        prompt=str(content.get("video_prompt", "")),
        image=next(images, None),
        reference_sound=next(sounds, None) if folder.name == "set2" else None,
    )


def _speech(content: dict[str, Any], path: Path) -> str:
    prompt = content.get("speech_prompt")
    if not isinstance(prompt, dict) or not isinstance(prompt.get("text"), str):
        raise ValueError(f"{path}: speech_prompt.text: expected a text, got {prompt!r}")
    return prompt["text"]


def _sounds(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    prompts = content.get("audio_prompt")
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"{path}: audio_prompt: expected a list of texts, got {prompts!r}")
    return tuple(prompts)


def _first(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path | None:
    return next((path for suffix in suffixes if (path := folder / f"{stem}{suffix}").is_file()), None)


def check_clips(clips: Path | None) -> None:
    """Raises FileNotFoundError for a folder of clips that is not there."""
    if clips is not None and not clips.is_dir():
        raise FileNotFoundError(
            f"{clips}: no such folder; give the folder with the generated clips as --clips"
        )
