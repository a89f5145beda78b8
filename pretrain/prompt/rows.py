"""One row of an inference JSONL: typed, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.config import nearest
from pretrain.jsonl import FieldError
from pretrain.prompt.characters import broken_character
from pretrain.prompt.keys import KEYS, key_errors
from pretrain.prompt.names import name_problem
from pretrain.prompt.parsed import ParsedPrompt, parse, too_many
from pretrain.prompt.spans import Span, find_spans
from pretrain.types import MAX_FRAMES, PIXELS_PER_LATENT, Task, num_video_latents

MAX_SIZE = 16_384  # pixels of a side
MAX_SEED = 2**63 - 1
Wrong = Callable[[str, str], None]  # (field, what is wrong with it)


@dataclass(frozen=True)
class PromptRow:
    """One line of an inference JSONL; paths are resolved against the file's folder."""

    prompt: ParsedPrompt
    image_path: Path | None
    reference_paths: tuple[Path | None, ...]  # one per span
    num_frames: int | None  # None = the caller's default
    data_id: str
    meta: dict[str, Any] = field(default_factory=dict)
    line: int = 0
    height: int | None = None  # pixels, None = the caller's default
    width: int | None = None
    file: Path = field(default=Path(), compare=False)  # the JSONL
    task: Task | None = None  # None = the caller's default
    seed: int | None = None
    negative: ParsedPrompt | None = None  # what guidance leads away from

    @property
    def where(self) -> str:
        """`file:line`, for errors."""
        return f"{self.file}:{self.line}"


def prompt_row(
    row: Mapping[str, Any], line: int, path: Path, errors: list[FieldError], own_keys: bool = False
) -> PromptRow | None:
    """The row, or None; whatever is wrong goes into `errors`. `own_keys`: see `keys.key_errors`."""

    def wrong(name: str, message: str) -> None:
        errors.append(FieldError(line, name, message))

    for key, message in key_errors(row, own_keys):
        wrong(key if key.isprintable() and key.strip() else ascii(key), message)
    key = "prompt" if "prompt" in row or "text" not in row else "text"  # `text` is the legacy key
    references, image, meta = (row.get(name) or None for name in ("spk_wavs", "image_path", "meta"))
    spans = _check_text(row, key, wrong)
    _check_paths(references, image, spans, wrong)
    data_id = row.get("data_id", f"{path.stem}-{line:05d}")
    if problem := name_problem(data_id):
        wrong("data_id", problem)
    if meta is not None and not isinstance(meta, dict):
        wrong("meta", f"expected an object, got {meta!r}")
    _check_sizes(row, wrong)
    _check_making(row, wrong)
    for name in KEYS:
        if name not in (key, "data_id", "negative_prompt") and (broken := next(_broken(row.get(name)), "")):
            wrong(name, broken)
    if errors or spans is None:
        return None
    prompt = parse(row[key], references or ())
    paths = tuple(path.parent / reference if reference else None for reference in prompt.references)
    return PromptRow(
        prompt,
        path.parent / image if image else None,
        paths,
        row.get("num_frames"),
        data_id,
        meta or {},
        line,
        row.get("height"),
        row.get("width"),
        path,
        Task(row["task"]) if row.get("task") else None,
        row.get("seed"),
        parse(row["negative_prompt"]) if row.get("negative_prompt") else None,
    )


def size_problem(size: Any) -> str:
    """What is wrong with a height or width in pixels, "" if nothing is."""
    step = 2 * PIXELS_PER_LATENT  # the model takes 2x2 latents as one token
    if isinstance(size, int) and not isinstance(size, bool) and size > 0 and size % step == 0:
        return "" if size <= MAX_SIZE else f"must be at most {MAX_SIZE} pixels, got {size}"
    return f"must be a multiple of {step} pixels, got {size!r}"


def _check_text(row: Mapping[str, Any], key: str, wrong: Wrong) -> tuple[Span, ...] | None:
    """The spans of the prompt, None where it is wrong."""
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        found = f"expected a text, got {text!r}" if key in row else "missing"
        wrong(key, f"{found}; write the prompt")
        return None
    if broken := broken_character(text):
        wrong(key, broken)
        return None
    try:
        return find_spans(text)
    except ValueError as error:
        wrong(key, str(error))
        return None


def _check_paths(references: Any, image: Any, spans: tuple[Span, ...] | None, wrong: Wrong) -> None:
    if references is not None and not (
        isinstance(references, list) and all(item is None or isinstance(item, str) for item in references)
    ):
        wrong("spk_wavs", f"expected a list of paths, got {references!r}")
    elif references and spans is not None and len(references) > len(spans):
        wrong("spk_wavs", too_many(len(references), len(spans)))
    if image is not None and not isinstance(image, str):
        wrong("image_path", f"expected a path, got {image!r}")


def _check_sizes(row: Mapping[str, Any], wrong: Wrong) -> None:
    num_frames = row.get("num_frames")
    if num_frames is not None and (not isinstance(num_frames, int) or isinstance(num_frames, bool)):
        wrong("num_frames", f"expected a whole number, got {num_frames!r}")
    elif num_frames is not None:
        try:
            num_video_latents(num_frames)
        except ValueError as error:
            nearest = 1 + 4 * max(0, round((min(num_frames, MAX_FRAMES) - 1) / 4))
            wrong("num_frames", f"{error}; the nearest is {nearest}")
    for name in ("height", "width"):
        if row.get(name) is not None and (problem := size_problem(row[name])):
            wrong(name, problem)


def task_problem(task: Any) -> str:
    """What is wrong with the name of a task, "" if nothing is."""
    known = [str(one) for one in Task]
    return "" if task in known else f"unknown task {task!r}; {nearest(str(task), known)}"


def negative_problem(text: Any) -> str:
    """What is wrong with a negative prompt, "" if nothing is."""
    if not isinstance(text, str) or not text.strip():
        return f"expected a text, got {text!r}"
    if broken := broken_character(text):
        return broken
    try:
        spoken = find_spans(text)
    except ValueError as error:
        return str(error)
    return "speech does not belong in a negative prompt; remove its marks" if spoken else ""


def _check_making(row: Mapping[str, Any], wrong: Wrong) -> None:
    """How the clip is to be made."""
    if (task := row.get("task")) is not None and (problem := task_problem(task)):
        wrong("task", problem)
    seed = row.get("seed")
    if seed is not None and (
        isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED
    ):
        wrong("seed", f"expected a whole number from 0 to {MAX_SEED}, got {seed!r}")
    if (negative := row.get("negative_prompt")) is not None and (problem := negative_problem(negative)):
        wrong("negative_prompt", problem)


def _broken(value: Any) -> Iterator[str]:
    """What is wrong with the texts in a value, at any depth."""
    if isinstance(value, str):
        if message := broken_character(value):
            yield message
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _broken(key)
            yield from _broken(item)
    elif isinstance(value, list):
        for item in value:
            yield from _broken(item)
