"""The sets of clips that a survey compares: one prompt, one clip of each model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.gsb.pairs import INDEX, ClipRef, read_clips
from pretrain.files import path_of_row, sha256_of
from pretrain.jsonl import FieldError, scan
from pretrain.media.errors import MediaError

ADVICE = "generate both from one prompts file"
GONE = "generate it again or drop the case from the index"


@dataclass(frozen=True)
class Case:
    """A prompt and the clip of each model; `kind` is the prompts file's meta.kind, "" without one."""

    case_id: str
    prompt: str
    clips: Mapping[str, ClipRef]  # by model
    kind: str = ""
    references: tuple[Path, ...] = ()  # voices, in the order of the prompt's speech


def read_cases(sources: Sequence[tuple[str | None, Path]]) -> list[Case]:
    """The cases of (model, index or its folder); model None where rows name theirs, as a rollout store's do.

    Raises ValueError for one model alone, sets of different cases or prompts, MediaError for a clip without
    a file, and what `read_clips` raises.
    """
    by_model: dict[str, dict[str, ClipRef]] = {}
    where: dict[str, Path] = {}
    for model, source in sources:
        for clip in read_clips(source, model):
            known = by_model.setdefault(clip.model, {})
            if clip.case_id in known:
                raise ValueError(f"{source}: {clip.model!r} has case {clip.case_id!r} twice; name sets apart")
            known[clip.case_id] = clip
            where[clip.model] = source
    if len(by_model) < 2:
        found = ", ".join(by_model) or "none"
        raise ValueError(f"one model alone ({found}) cannot be compared; give A=FOLDER B=FOLDER")
    _check_alike(by_model, where)
    facts = _facts(sources[0][1])
    first = next(iter(by_model.values()))
    return [
        Case(
            case_id,
            clip.prompt,
            {model: clips[case_id] for model, clips in by_model.items()},
            facts[case_id][0] if case_id in facts else "",
            facts[case_id][1] if case_id in facts else (),
        )
        for case_id, clip in first.items()
    ]


def content_digest(cases: Sequence[Case]) -> str:
    """Of names, prompts and files: equal for the same sets, wherever they lie."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.case_id):
        for model, clip in sorted(case.clips.items()):
            assert clip.video is not None
            digest.update(repr((case.case_id, case.prompt, model, sha256_of(clip.video))).encode())
    return digest.hexdigest()


def _check_alike(by_model: Mapping[str, Mapping[str, ClipRef]], where: Mapping[str, Path]) -> None:
    (first, base), *others = by_model.items()
    for model, clips in others:
        if apart := sorted(base.keys() ^ clips.keys()):
            has, lacks = (first, model) if apart[0] in base else (model, first)
            raise ValueError(
                f"{where[lacks]}: {len(apart)} cases are of one set only, as {apart[0]!r}, which {has!r} has "
                f"and {lacks!r} has not; {ADVICE}"
            )
        for case_id, clip in clips.items():
            if clip.prompt != base[case_id].prompt:
                raise ValueError(
                    f"{where[model]}: case {case_id!r} has another prompt than in {where[first]}; {ADVICE}"
                )
    for model, clips in by_model.items():
        for clip in clips.values():
            if clip.video is None or not clip.video.is_file():
                advice = GONE if clip.video else "`nava rollout --mp4` writes the files"
                place = clip.video or where[model]
                raise MediaError(f"{place}: the clip of case {clip.case_id!r} is not there; {advice}")


def _facts(source: Path) -> dict[str, tuple[str, tuple[Path, ...]]]:
    """case_id -> (kind, references that are there), by the fields that `nava generate` keeps of a prompt."""
    index = source / INDEX if source.is_dir() else source
    found = {}
    for _, row in scan(index):
        if isinstance(row, FieldError):
            continue
        meta, paths = row.get("meta"), row.get("reference_paths")
        kind = meta.get("kind") if isinstance(meta, dict) else ""
        named = [path for path in paths if isinstance(path, str) and path] if isinstance(paths, list) else []
        places = [(path_of_row(path, index.parent), index.parent / path) for path in named]
        there = [place for some in places for place in some if place.is_file()]
        unique = tuple(dict.fromkeys(place.resolve() for place in there))
        found[str(row.get("case_id", row.get("data_id")))] = (kind if isinstance(kind, str) else "", unique)
    return found
