"""Prompts with speech spans, `A man says: <S>hello<E>.`: parse, validate, bind reference voices to spans.

Format: NAVA's public inference JSONL (nava.md sections 2 and 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.jsonl import FieldError, scan
from pretrain.types import PIXELS_PER_LATENT, num_video_latents

SPEECH_START = "<S>"
SPEECH_END = "<E>"
TIMBRE = "<extra_id_2>"

_MARKS = re.compile("|".join(map(re.escape, (SPEECH_START, SPEECH_END, TIMBRE))))
_UNSAFE_ID = re.compile(r"[/\\\x00-\x1f]|^\.|^$")


@dataclass(frozen=True)
class Span:
    """Spoken words: `text == prompt[start:end]`, characters between (not including) the marks."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt, its speech spans in order, and one reference (path, or None) for each span."""

    text: str
    spans: tuple[Span, ...]
    references: tuple[str | None, ...]


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

    @property
    def where(self) -> str:
        """`file:line`, for errors."""
        return f"{self.file}:{self.line}"


def parse(text: str, references: Sequence[str | None] = ()) -> ParsedPrompt:
    """Finds the spans and binds the i-th reference to the i-th span; spans beyond the references get None.

    Raises ValueError for unbalanced, nested or empty spans, a timbre token in the text, or more references
    than spans.
    """
    spans = _find_spans(text)
    if len(references) > len(spans):
        raise ValueError(_too_many(len(references), len(spans)))
    padded = [reference or None for reference in references] + [None] * (len(spans) - len(references))
    return ParsedPrompt(text, spans, tuple(padded))


def with_timbre_tokens(parsed: ParsedPrompt) -> str:
    """The text the encoder sees: a timbre token right after every opening mark, `<S><extra_id_2>words<E>`."""
    return parsed.text.replace(SPEECH_START, SPEECH_START + TIMBRE)


def _too_many(num_references: int, num_spans: int) -> str:
    return (
        f"{num_references} references for {num_spans} speech spans; give at most one per "
        f"{SPEECH_START}...{SPEECH_END} span"
    )


def _find_spans(text: str) -> tuple[Span, ...]:
    spans: list[Span] = []
    opened: int | None = None
    for mark in _MARKS.finditer(text):
        at = f"at character {mark.start() + 1}"
        if mark.group() == TIMBRE:
            raise ValueError(f"{TIMBRE} {at}; remove it, it is put in after every {SPEECH_START} by itself")
        if mark.group() == SPEECH_START:
            if opened is not None:
                raise ValueError(
                    f"{SPEECH_START} {at} inside an open span; close the span with {SPEECH_END} first"
                )
            opened = mark.end()
        elif opened is None:
            raise ValueError(
                f"{SPEECH_END} {at} without {SPEECH_START}; put {SPEECH_START} before the spoken words"
            )
        else:
            if not text[opened : mark.start()].strip():
                raise ValueError(
                    f"empty speech span {at}; write the spoken words between {SPEECH_START} and {SPEECH_END}"
                )
            spans.append(Span(opened, mark.start(), text[opened : mark.start()]))
            opened = None
    if opened is not None:
        raise ValueError(
            f"{SPEECH_START} at character {opened - len(SPEECH_START) + 1} without {SPEECH_END}; close the "
            "span"
        )
    return tuple(spans)


def read_prompts(path: Path | str) -> list[PromptRow]:
    """Reads an inference JSONL. ValueError `file:line field: message` at the first bad row; no media read."""
    rows: list[PromptRow] = []
    for _, result in _scan_prompts(Path(path), files=False):
        if isinstance(result, PromptRow):
            rows.append(result)
        else:
            raise ValueError(result[0].at(path))
    return rows


def check_files(rows: Iterable[PromptRow]) -> None:
    """Raises FileNotFoundError for the first image or reference that is missing."""
    for row in rows:
        for named in (row.image_path, *row.reference_paths):
            if named is not None and not named.is_file():
                raise FileNotFoundError(f"{row.where}: {named} does not exist; correct the path or remove it")


def check_prompts(path: Path | str, files: bool = False) -> dict[str, Any]:
    """`{rows, spans, references, errors: [{line, field, message}]}`; the counts are of valid rows.

    With `files`, image and reference files must exist. Raises FileNotFoundError without the JSONL itself.
    """
    num_rows, good, errors = 0, [], []
    for _, result in _scan_prompts(Path(path), files):
        num_rows += 1
        if isinstance(result, PromptRow):
            good.append(result.prompt)
        else:
            errors += [
                {"line": error.line, "field": error.field, "message": error.message} for error in result
            ]
    num_references = sum(reference is not None for prompt in good for reference in prompt.references)
    return {
        "rows": num_rows,
        "spans": sum(len(prompt.spans) for prompt in good),
        "references": num_references,
        "errors": errors,
    }


def _scan_prompts(path: Path, files: bool) -> Iterator[tuple[int, PromptRow | list[FieldError]]]:
    seen: dict[str, int] = {}
    for line, row in scan(path):
        if isinstance(row, FieldError):
            yield line, [row]
            continue
        errors: list[FieldError] = []
        result = _prompt_row(row, line, path, errors)
        if result is not None:
            if result.data_id in seen:
                errors.append(
                    FieldError(
                        line,
                        "data_id",
                        f"{result.data_id!r} is also on line {seen[result.data_id]}; make it unique",
                    )
                )
            seen.setdefault(result.data_id, line)
            if files:
                errors += _missing_files(result)
        yield line, errors if errors or result is None else result


def _prompt_row(row: Mapping[str, Any], line: int, path: Path, errors: list[FieldError]) -> PromptRow | None:
    """The row, or None; whatever is wrong goes into `errors`."""

    def wrong(name: str, message: str) -> None:
        errors.append(FieldError(line, name, message))

    key = "prompt" if "prompt" in row or "text" not in row else "text"  # `text` is the legacy key
    text, references, image = row.get(key), row.get("spk_wavs") or [], row.get("image_path") or None
    num_frames, data_id, meta = (
        row.get("num_frames"),
        row.get("data_id", f"{path.stem}-{line:05d}"),
        row.get("meta") or {},
    )
    spans: tuple[Span, ...] | None = None
    if not isinstance(text, str) or not text.strip():
        wrong(
            key,
            f"expected a text, got {text!r}; write the prompt" if key in row else "missing; write the prompt",
        )
    else:
        try:
            spans = _find_spans(text)
        except ValueError as error:
            wrong(key, str(error))
    if not isinstance(references, list) or not all(
        item is None or isinstance(item, str) for item in references
    ):
        wrong("spk_wavs", f"expected a list of paths, got {references!r}")
    elif spans is not None and len(references) > len(spans):
        wrong("spk_wavs", _too_many(len(references), len(spans)))
    if image is not None and not isinstance(image, str):
        wrong("image_path", f"expected a path, got {image!r}")
    if not isinstance(data_id, str) or _UNSAFE_ID.search(data_id):
        wrong(
            "data_id", f"expected a name fit for a file, got {data_id!r}; leave out slashes and a leading dot"
        )
    if not isinstance(meta, dict):
        wrong("meta", f"expected an object, got {meta!r}")
    if num_frames is not None:
        _check_num_frames(num_frames, wrong)
    height, width = row.get("height"), row.get("width")
    for name, size in (("height", height), ("width", width)):
        if size is not None and (problem := size_problem(size)):
            wrong(name, problem)
    if errors or spans is None:
        return None
    prompt = parse(str(text), references)
    paths = tuple(path.parent / reference if reference else None for reference in prompt.references)
    image_path = path.parent / image if image else None
    return PromptRow(prompt, image_path, paths, num_frames, data_id, meta, line, height, width, path)


def _check_num_frames(num_frames: Any, wrong: Any) -> None:
    if not isinstance(num_frames, int) or isinstance(num_frames, bool):
        return wrong("num_frames", f"expected a whole number, got {num_frames!r}")
    try:
        num_video_latents(num_frames)
    except ValueError as error:
        wrong("num_frames", f"{error}; the nearest is {1 + 4 * max(0, round((num_frames - 1) / 4))}")


def size_problem(size: Any) -> str:
    """What is wrong with a height or width in pixels, "" if nothing is."""
    step = 2 * PIXELS_PER_LATENT  # the model takes 2x2 latents as one token
    if isinstance(size, int) and not isinstance(size, bool) and size > 0 and size % step == 0:
        return ""
    return f"must be a multiple of {step} pixels, got {size!r}"


def _missing_files(row: PromptRow) -> list[FieldError]:
    named = [("image_path", row.image_path)] + [
        (f"spk_wavs[{i}]", path) for i, path in enumerate(row.reference_paths)
    ]
    return [
        FieldError(row.line, name, f"no such file: {path}")
        for name, path in named
        if path is not None and not path.is_file()
    ]
