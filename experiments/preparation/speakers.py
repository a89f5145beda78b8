"""Who speaks: voices clustered within a source and then across sources; references from other clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LONG_S = 1.0  # spans whose voice decides; shorter ones go to the nearest cluster
MIN_SPAN_S = 0.3  # of a reference
MAX_CLUSTERED = 4000  # voices of one clustering: its distances are their square


@dataclass(frozen=True)
class SpanKey:
    """SpokenSpan `span` of clip `clip` of the set."""

    clip: int
    span: int


def assign_speakers(
    clips: Sequence[Mapping[str, Any]], same: float, across: float, only: str = ""
) -> dict[SpanKey, str]:
    """Speaker names `speaker000` on, numbered in the order in which they first speak; a given name counts,
    and `only` is given for all that have none.

    `same`: cosine at which clusters join (average linkage) within a source; `across`: of several sources.
    Spans without a voice follow their clip's first.
    """
    by_source: dict[str, list[SpanKey]] = {}
    named: dict[SpanKey, str] = {}
    for place, clip in enumerate(clips):
        for number, span in enumerate(clip["spans"]):
            key = SpanKey(place, number)
            if given := clip["given"]["speaker"] or only:
                named[key] = given
            elif span["voice"]:
                by_source.setdefault(clip["source"], []).append(key)
    groups: list[list[SpanKey]] = []
    for keys in by_source.values():
        groups += _clusters(keys, _voices(clips, keys), _seconds(clips, keys), same)
    joined = np.arange(len(groups))
    if 1 < len(groups) <= MAX_CLUSTERED:
        joined = _labels(np.array([_centre(clips, group) for group in groups]), across)
    label_of = {key: int(label) for group, label in zip(groups, joined, strict=True) for key in group}
    return _numbered(clips, label_of, named)


def _numbered(
    clips: Sequence[Mapping[str, Any]], labels: Mapping[SpanKey, int], named: Mapping[SpanKey, str]
) -> dict[SpanKey, str]:
    numbers: dict[int, str] = {}
    taken, found = set(named.values()), dict[SpanKey, str]()
    for place, clip in enumerate(clips):
        for number in range(len(clip["spans"])):
            key = SpanKey(place, number)
            if key in named:
                found[key] = named[key]
                continue
            own = (
                labels[SpanKey(place, i)] for i in range(len(clip["spans"])) if SpanKey(place, i) in labels
            )
            label = labels.get(key, next(own, None))
            if label is None:
                continue
            while label not in numbers:
                name = f"speaker{len(numbers) + len(taken - set(named.values())):03d}"
                if name in taken:
                    taken.discard(name)
                    name = f"{name}b"
                numbers[label] = name
            found[key] = numbers[label]
    return found


def choose_references(
    clips: Sequence[Mapping[str, Any]], speakers: Mapping[SpanKey, str], min_s: float
) -> dict[str, list[list[SpanKey]]]:
    """Up to two references for each speaker, of different clips: a clip takes the one that it is not in.

    A reference is as many spans as are needed for `min_s`, the longest first; one that is shorter is none.
    """
    spans: dict[str, list[tuple[float, SpanKey]]] = {}
    for key, name in speakers.items():
        span = clips[key.clip]["spans"][key.span]
        if (seconds := span["end_s"] - span["start_s"]) >= MIN_SPAN_S:
            spans.setdefault(name, []).append((seconds, key))
    chosen: dict[str, list[list[SpanKey]]] = {}
    for name, found in spans.items():
        ordered = sorted(found, key=lambda one: (-one[0], one[1].clip, one[1].span))
        first = _enough(ordered, min_s)
        taken = {key.clip for key in first}
        second = _enough([one for one in ordered if one[1].clip not in taken], min_s)
        if references := [one for one in (first, second) if one]:
            chosen[name] = references
    return chosen


def _enough(ordered: Sequence[tuple[float, SpanKey]], min_s: float) -> list[SpanKey]:
    """The first spans that are `min_s` together, [] where all are less."""
    keys, total = list[SpanKey](), 0.0
    for seconds, key in ordered:
        keys.append(key)
        total += seconds
        if total >= min_s:
            return keys
    return []


def _clusters(
    keys: Sequence[SpanKey], voices: np.ndarray, seconds: Sequence[float], same: float
) -> list[list[SpanKey]]:
    """Groups of one source's spans; what is short goes to the nearest group of long ones."""
    long = [i for i, length in enumerate(seconds) if length >= LONG_S][:MAX_CLUSTERED]
    long = long or list(range(min(len(keys), MAX_CLUSTERED)))
    labels = _labels(voices[long], same)
    members = [[long[i] for i in np.flatnonzero(labels == label)] for label in range(labels.max() + 1)]
    groups = [[keys[i] for i in group] for group in members]
    centres = np.array([_unit(voices[group].mean(axis=0)) for group in members])
    for i in sorted(set(range(len(keys))) - set(long)):
        groups[int(np.argmax(centres @ voices[i]))].append(keys[i])
    return groups


def _labels(voices: np.ndarray, same: float) -> np.ndarray:
    """Clusters 0, 1, ... of unit vectors [N, D] by average linkage on cosine."""
    if len(voices) < 2:
        return np.zeros(len(voices), int)
    from scipy.cluster.hierarchy import fcluster, linkage

    found = fcluster(linkage(voices, "average", metric="cosine"), 1.0 - same, "distance")
    return np.unique(found, return_inverse=True)[1]


def _voices(clips: Sequence[Mapping[str, Any]], keys: Sequence[SpanKey]) -> np.ndarray:
    return np.array([clips[key.clip]["spans"][key.span]["voice"] for key in keys], np.float64)


def _seconds(clips: Sequence[Mapping[str, Any]], keys: Sequence[SpanKey]) -> list[float]:
    spans = [clips[key.clip]["spans"][key.span] for key in keys]
    return [span["end_s"] - span["start_s"] for span in spans]


def _centre(clips: Sequence[Mapping[str, Any]], keys: Sequence[SpanKey]) -> np.ndarray:
    weights = np.array(_seconds(clips, keys))
    return _unit(weights @ _voices(clips, keys))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
