"""Pairs of clips as two sets that `nava gsb serve A=FOLDER B=FOLDER` takes."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.gsb.pairs import INDEX
from pretrain.files import locked, replacing
from pretrain.jsonl import FieldError, dump, scan
from pretrain.prompt.names import name_problem


@dataclass(frozen=True, kw_only=True)
class VoteClip:
    """One side of a pair: the label of its model, its job as the service tells it, and its mp4."""

    label: str
    job: Mapping[str, Any]
    video: Path
    audio: Path | None = None


@dataclass(frozen=True, kw_only=True)
class VotePair:
    """Two clips of one prompt. references: the voice of each span, meta: of the prompt."""

    first: VoteClip
    second: VoteClip
    references: tuple[Path | None, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def case_id(self) -> str:
        """Equal for the same two clips only; a name of files."""
        ids = f"{self.first.job['id']} {self.second.job['id']}"
        return f"seed{self.first.job['seed']}-{hashlib.sha256(ids.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class WrittenSets:
    """The two folders, how many cases each has, how many are new, and the command of the vote."""

    folders: tuple[Path, Path]
    cases: int
    added: int
    command: str


def add_to_vote(folder: Path, pairs: Sequence[VotePair]) -> WrittenSets:
    """Put pairs into `folder`/LABEL of the two models, beside those that are there; the same pair once.

    Clips come first and the indexes last; a case that a killed call left in one index only is no case of the
    vote until its pair is sent again. Raises
    ValueError for no pair, pairs of other models than those there, prompts that differ, a clip without
    pictures and sound, and a folder that another call fills; OSError.
    """
    first, second = _labels(folder, pairs)
    with locked(folder / ".lock", f"{folder}: another window adds to this vote; try again"):
        places, added = (folder / first, folder / second), 0
        there = [_known(place) for place in places]
        rows = [
            {case: row for case, row in known.items() if case in there[0] and case in there[1]}
            for known in there
        ]
        for pair in pairs:
            for clip, place, known in zip((pair.first, pair.second), places, rows, strict=True):
                if pair.case_id not in known:
                    known[pair.case_id] = _copied(pair, clip, place)
                    added += clip is pair.first
        for place, known in zip(places, rows, strict=True):
            dump(place / INDEX, known.values())
    sets = [shlex.quote(f"{place.name}={place}") for place in places]
    votes = shlex.quote(str(folder / "votes.db"))
    command = f"nava gsb serve {' '.join(sets)} --votes {votes} --links 2"
    return WrittenSets(places, len(rows[0]), added, command)


def vote_name(text: str) -> str:
    """A name as a folder. Raises ValueError."""
    name = text.strip()
    if problem := name_problem(name):
        raise ValueError(f"name of the vote: {problem}")
    return name


def _labels(folder: Path, pairs: Sequence[VotePair]) -> tuple[str, str]:
    if not pairs:
        raise ValueError("no pair yet: a vote needs clips of A and of B that are finished")
    found = {(pair.first.label, pair.second.label) for pair in pairs}
    if len(found) > 1 or not (labels := next(iter(found)))[0] != labels[1]:
        raise ValueError(
            "pairs of other models in one vote; send those of each two models to a vote of theirs"
        )
    for label in labels:
        if problem := name_problem(label):
            raise ValueError(f"model {label!r}: {problem}")
    for pair in pairs:
        for clip in (pair.first, pair.second):
            if not (clip.job.get("video_bytes") and clip.job.get("audio_bytes")):
                raise ValueError(
                    f"seed {clip.job['seed']}: raters compare clips with pictures and sound both"
                )
        if pair.first.job["prompt"] != pair.second.job["prompt"]:
            raise ValueError(f"seed {pair.first.job['seed']}: the two clips have different prompts")
    others = sorted(path.name for path in folder.glob("*/") if (path / INDEX).is_file())
    if others and set(others) != set(labels):
        raise ValueError(
            f"vote {folder.name!r} is about {' and '.join(others)}, these clips are of {' and '.join(labels)}"
            "; give another name"
        )
    return labels


def _known(place: Path) -> dict[str, dict[str, Any]]:
    """Rows of an index by case, as far as their clips are there."""
    if not (place / INDEX).is_file():
        place.mkdir(parents=True, exist_ok=True)
        return {}
    found = {}
    for _, row in scan(place / INDEX):
        if isinstance(row, FieldError):
            raise ValueError(row.at(place / INDEX))
        if (place / str(row["video"])).is_file():
            found[str(row["data_id"])] = row
    return found


def _copied(pair: VotePair, clip: VoteClip, place: Path) -> dict[str, Any]:
    """Files of one clip under the name of its case, and its row: that of `nava generate`'s index."""
    name = pair.case_id
    _copy(clip.video, place / f"{name}.mp4")
    if clip.audio:
        _copy(clip.audio, place / f"{name}.wav")
    voices = []
    for number, path in enumerate(pair.references):
        kept = path and place.parent / "references" / f"{name}-{number}{path.suffix}"
        if path and kept:
            _copy(path, kept)
        voices.append(str(kept) if kept else "")
    job = {key: value for key, value in clip.job.items() if value not in (None, [], {})}
    return {
        "data_id": name,
        "prompt": clip.job["prompt"],
        "video": f"{name}.mp4",
        "audio": f"{name}.wav" if clip.audio else "",
        "reference_paths": voices,
        "meta": {**pair.meta, "model": clip.label, "job": json.loads(json.dumps(job))},
        "num_frames": clip.job["num_frames"],
        "fps": clip.job["fps"],
        "seed": clip.job["seed"],
    }


def _copy(source: Path, path: Path) -> None:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
