"""Votes on clips -> preference pairs: one row per case and pair, votes counted per axis.

Rule of a label: the most frequent of (first, Same, second) among the counted raters; a draw is Same, since it
shows no preference. An axis without votes has no label.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from finetune.gsb.names import folded_name, name_problem
from finetune.gsb.tie_rates import label_rate_at_zero
from finetune.gsb.votes import AXES, Vote
from pretrain.config import nearest
from pretrain.files import sha256_of
from pretrain.jsonl import FieldError, dump, scan

RULE = "most frequent of first, Same, second; a draw is Same"
INDEX = "index.jsonl"


@dataclass(frozen=True)
class ClipRef:
    """A clip of votes.

    `sha256` is of its file, "" until needed; of a rollout store it is of the latents, and `video_sha256` is
    of the file that people saw.
    """

    clip_id: str
    model: str
    case_id: str
    prompt: str
    video: Path | None
    sha256: str = ""
    video_sha256: str = ""

    def digest(self) -> str:
        """Raises FileNotFoundError for a clip without digest whose file is gone."""
        return self.sha256 or _digest(self.video)

    def is_of(self, digest: str) -> bool:
        """Whether a vote with this digest is about this clip."""
        return digest in (self.video_sha256, self.digest())


@dataclass(frozen=True)
class PreferencePair:
    """Two clips of one prompt and its votes: `counts[axis] = (first, Same, second)`."""

    case_id: str
    first: ClipRef
    second: ClipRef
    counts: Mapping[str, tuple[int, int, int]]
    simulated: bool

    def label(self, axis: str) -> int | None:
        """+1 the first wins, 0 Same, -1 the second, None without votes."""
        return majority(self.counts[axis]) if any(self.counts.get(axis, ())) else None

    def as_json(self, folder: Path) -> dict[str, Any]:
        """Videos relative to `folder`."""
        return {
            "case_id": self.case_id,
            "prompt": self.first.prompt,
            "first": _clip_json(self.first, folder),
            "second": _clip_json(self.second, folder),
            "labels": {axis: self.label(axis) for axis in AXES},
            "counts": {
                axis: dict(zip(("first", "same", "second"), count, strict=True))
                for axis, count in self.counts.items()
            },
            "rule": RULE,
            "simulated": self.simulated,
        }


def majority(count: Sequence[int]) -> int:
    """Label of (first, Same, second) counts by the rule: +1, 0 or -1."""
    first, same, second = count
    return 1 if first > max(same, second) else -1 if second > max(first, same) else 0


def read_clips(source: Path, model: str | None = None) -> list[ClipRef]:
    """The clips of an index of `nava generate` or of a rollout store (or its folder).

    All are of `model`, else of each row's `model`. Where a case has several clips of `model` they are called
    MODEL#0, MODEL#1 ... in the order of the index. Names are folded as in votes. A row has data_id, prompt,
    and video or sha256; `case_id` is data_id where it is absent. Raises FileNotFoundError, or ValueError
    naming file, line and field.
    """
    index = source / INDEX if source.is_dir() else source
    clips = []
    for line, row in scan(index, finite=True):
        if isinstance(row, FieldError):
            raise ValueError(row.at(index))
        row = {**row, **({"model": model} if model else {})}
        for name in ("data_id", "prompt", "model"):
            if not isinstance(row.get(name), str):
                advice = "; or give the index as MODEL=INDEX" if name == "model" else ""
                raise ValueError(
                    FieldError(line, name, f"expected text, got {row.get(name)!r}{advice}").at(index)
                )
        if not row.get("video") and not row.get("sha256"):
            raise ValueError(
                FieldError(line, "video", "missing, and no sha256 either; name the clip's file").at(index)
            )
        video = index.parent / row["video"] if row.get("video") else None
        named = {"model": row["model"], "case_id": str(row.get("case_id", row["data_id"]))}
        for name, value in named.items():
            if problem := name_problem(value):
                raise ValueError(FieldError(line, name, problem).at(index))
        clips.append(
            ClipRef(
                row["data_id"],
                folded_name(named["model"]),
                folded_name(named["case_id"]),
                row["prompt"],
                video,
                row.get("sha256") or "",
                row.get("video_sha256") or "",
            )
        )
    return _numbered(clips) if model else clips


def _numbered(clips: Sequence[ClipRef]) -> list[ClipRef]:
    """Clips of one model; several of a case get a number each."""
    counts, seen = Counter(clip.case_id for clip in clips), Counter[str]()
    named = []
    for clip in clips:
        several = counts[clip.case_id] > 1
        named.append(replace(clip, model=f"{clip.model}#{seen[clip.case_id]}") if several else clip)
        seen[clip.case_id] += 1
    return named


def pair_up(votes: Iterable[Vote], clips: Iterable[ClipRef], source: Path | str) -> list[PreferencePair]:
    """The pairs of clips of `votes` (from the file `source`, named in errors), in order of first vote.

    The first clip is that of the model earlier in the alphabet. A clip is found by model and case, and by its
    digest where the vote has one; a digest finds it also where the vote calls the model something else than
    the index does. Raises ValueError for a vote whose clip is not there, is another one, or is one of
    several, or where both sides are the same clip.
    """
    known: dict[str, dict[str, list[ClipRef]]] = {}
    for clip in clips:
        of_case = known.setdefault(folded_name(clip.case_id), {})
        of_case.setdefault(folded_name(clip.model), []).append(clip)
    counts: dict[tuple[ClipRef, ClipRef], dict[str, list[int]]] = {}
    simulated: Counter[tuple[ClipRef, ClipRef]] = Counter()
    for vote in votes:
        left, right = (_find(vote, side, known.get(vote.case_id, {}), source) for side in ("left", "right"))
        if wrong := _mismatch(left, right, vote):
            raise ValueError(wrong.at(source))
        first, second = (left, right) if vote.left_model == vote.pair[0] else (right, left)
        preference = vote.preference(vote.pair[0])
        if (second, first) in counts:  # other votes call these models something else
            first, second, preference = second, first, -preference
        counts.setdefault((first, second), {}).setdefault(vote.axis, [0, 0, 0])[1 - preference] += 1
        simulated[first, second] += vote.simulated
    if not counts:
        raise ValueError(f"{source}: no vote is left to make a pair of")
    return [
        PreferencePair(
            pair[0].case_id,
            *pair,
            {axis: (n[0], n[1], n[2]) for axis, n in votes_by_axis.items()},
            bool(simulated[pair]),
        )
        for pair, votes_by_axis in counts.items()
    ]


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> None:
    """One row per pair, written whole or not at all."""
    dump(path, (pair.as_json(path.parent) for pair in pairs))


def read_pairs(path: Path) -> list[PreferencePair]:
    """What `write_pairs` wrote. Raises ValueError `file:line field: message` for a damaged row."""
    pairs = []
    for line, row in scan(path, finite=True):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        try:
            first, second = (_clip_from(row[side], row, path.parent) for side in ("first", "second"))
            counts = {
                axis: (int(n["first"]), int(n["same"]), int(n["second"])) for axis, n in row["counts"].items()
            }
            pair = PreferencePair(row["case_id"], first, second, counts, bool(row["simulated"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                FieldError(line, "row", f"not a pair of `nava gsb export` ({error}); export it again").at(
                    path
                )
            ) from None
        if unknown := sorted(pair.counts.keys() - set(AXES)):
            message = f"unknown axis {unknown[0]!r}; {nearest(unknown[0], AXES)}"
            raise ValueError(FieldError(line, "counts", message).at(path))
        pairs.append(pair)
    return pairs


def tie_shares(pairs: Iterable[PreferencePair]) -> dict[str, float]:
    """Share of Same among the labels of each axis that was voted on."""
    found = {axis: [majority(count) for count in counts] for axis, counts in _counts_by_axis(pairs).items()}
    return {axis: labels.count(0) / len(labels) for axis, labels in found.items()}


def tie_rates(pairs: Iterable[PreferencePair]) -> dict[str, float]:
    """Rate of Same at margin 0 of each axis with a decided label: p in theta = (1 + p) / (1 - p) of the loss.

    Fitted to the votes (finetune.gsb.tie_rates), and never below the share of Same among the labels: a tie is
    likeliest where neither clip is better. An axis whose labels are all Same has no theta and is left out.
    """
    pairs = list(pairs)
    shares = tie_shares(pairs)
    return {
        axis: max(label_rate_at_zero(counts), shares[axis])
        for axis, counts in _counts_by_axis(pairs).items()
        if shares[axis] < 1
    }


def _counts_by_axis(pairs: Iterable[PreferencePair]) -> dict[str, list[tuple[int, int, int]]]:
    """Votes of each pair that was asked about an axis, in the order of AXES."""
    found: dict[str, list[tuple[int, int, int]]] = {axis: [] for axis in AXES}
    for pair in pairs:
        for axis, count in pair.counts.items():
            if any(count):
                found[axis].append(count)
    return {axis: counts for axis, counts in found.items() if counts}


def _mismatch(left: ClipRef, right: ClipRef, vote: Vote) -> FieldError | None:
    if left.prompt != right.prompt:
        return FieldError(vote.line, "case_id", f"the clips of {vote.case_id!r} have different prompts")
    if left == right:
        return FieldError(vote.line, "right_model", f"both sides are clip {left.clip_id!r}; correct the vote")
    return None


def _find(vote: Vote, side: str, of_case: Mapping[str, list[ClipRef]], source: Path | str) -> ClipRef:
    """The clip on a side among those of the vote's case, by model."""
    model, digest = getattr(vote, f"{side}_model"), getattr(vote, f"{side}_sha256")
    candidates = of_case.get(model, [])
    if not candidates and digest:
        candidates = [clip for clips in of_case.values() for clip in clips if clip.is_of(digest)]
    if not candidates:
        there = f"; it has clips of {', '.join(sorted(of_case))}" if of_case else ""
        message = f"no clip of {model!r} for case {vote.case_id!r} in the index{there}"
        raise ValueError(FieldError(vote.line, "case_id", message).at(source))
    matching = [clip for clip in candidates if clip.is_of(digest)] if digest else candidates
    if not matching:
        message = (
            f"{digest[:12]}... is not {candidates[0].digest()[:12]}... of the clip in the index; the "
            "votes are about another clip"
        )
        raise ValueError(FieldError(vote.line, f"{side}_sha256", message).at(source))
    if len(matching) > 1 and not digest:
        message = (
            f"{len(matching)} clips of {model!r} answer case {vote.case_id!r}; only a digest can tell "
            "which was shown"
        )
        raise ValueError(FieldError(vote.line, f"{side}_sha256", message).at(source))
    return matching[0]


def _clip_json(clip: ClipRef, folder: Path) -> dict[str, Any]:
    video = Path(os.path.relpath(clip.video, folder)).as_posix() if clip.video else None
    return {"clip_id": clip.clip_id, "model": clip.model, "sha256": clip.digest(), "video": video}


def _clip_from(clip: Mapping[str, Any], row: Mapping[str, Any], folder: Path) -> ClipRef:
    video = folder / clip["video"] if clip["video"] else None
    return ClipRef(clip["clip_id"], clip["model"], row["case_id"], row["prompt"], video, clip["sha256"])


@cache
def _digest(video: Path) -> str:
    if not video.is_file():
        raise FileNotFoundError(f"{video}: no such file; a clip of the index is gone")
    return sha256_of(video)
