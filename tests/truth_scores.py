"""A prepared set against the truth of its videos: scenes, words, speakers, who is seen, copies, cuts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from truth_film import Truth

from rewards.speech.folding import fold, split_words

WORD_EDGE_S = 0.03  # of a word may be outside of a clip that keeps it
SAME_TIME_S = 0.1


def read_results(work: Path) -> dict[str, dict[str, Any]]:
    """What was found in each source, by its name."""
    found = (json.loads(path.read_text()) for path in work.glob("*/result.json"))
    return {result["source"]: result for result in found}


def scene_f1(truths: Mapping[str, Truth], results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Boundaries within 2 pictures of the truth; within a fade or dissolve, anywhere in it."""
    hits = found_right = truth_count = found_count = 0
    wrong = []
    for name, truth in truths.items():
        if name not in results or truth.copy_of or (not truth.words and not truth.speech):
            continue
        found, room = results[name]["scenes"], 2.5 / truth.fps
        near = [[first - room <= at <= last + room for at in found] for first, last in truth.cuts]
        matched = sum(any(row) for row in near)
        right = sum(any(row[place] for row in near) for place in range(len(found)))
        if matched < len(truth.cuts) or right < len(found):
            wrong.append([name, f"{matched} of {len(truth.cuts)} found, {len(found) - right} too many"])
        hits, found_right = hits + matched, found_right + right
        truth_count, found_count = truth_count + len(truth.cuts), found_count + len(found)
    precision, recall = found_right / max(1, found_count), hits / max(1, truth_count)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {"f1": round(f1, 4), "boundaries": truth_count, "wrong": wrong}


def word_times(truths: Mapping[str, Truth], results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Share of words whose start and end are within 100 ms, by who found them; word error of recognition."""
    starts: dict[str, list[float]] = defaultdict(list)
    ends: dict[str, list[float]] = defaultdict(list)
    errors: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, truth in truths.items():
        if name not in results or truth.copy_of:
            continue
        by = results[name]["words_by"]
        heard = [word for word in results[name]["words"] if split_words(fold(word[0]))]
        said = [word.word for word in truth.words] or split_words(fold(truth.text))
        pairs, distance = matched([" ".join(split_words(fold(word[0]))) for word in heard], said)
        kind = f"{by}, recorded speech" if truth.text else by
        errors[kind][0] += distance
        errors[kind][1] += len(said)
        for place, other in pairs if truth.words else []:
            starts[by].append(abs(heard[place][1] - truth.words[other].start_s))
            ends[by].append(abs(heard[place][2] - truth.words[other].end_s))
    shares = {
        by: {
            "words": len(times),
            "start_within_100_ms": _within(times),
            "end_within_100_ms": _within(ends[by]),
        }
        for by, times in starts.items()
    }
    given = [time for by, times in starts.items() if by != "pocketsphinx" for time in times]
    wer = {by: {"wer": round(wrong / of, 4), "words": of} for by, (wrong, of) in errors.items() if of}
    return {
        "aligned_start_within_100_ms": _within(given),
        "all_start_within_100_ms": _within([time for times in starts.values() for time in times]),
        "by": shares,
        "word_error": wer,
    }


def _within(times: Sequence[float]) -> float:
    return round(float(np.mean(np.array(times) <= SAME_TIME_S)), 4) if times else float("nan")


def matched(heard: Sequence[str], said: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """(places of equal words in both, edit distance), by the cheapest alignment."""
    table = np.zeros((len(heard) + 1, len(said) + 1), int)
    table[:, 0], table[0] = np.arange(len(heard) + 1), np.arange(len(said) + 1)
    for i, word in enumerate(heard, 1):
        for j, other in enumerate(said, 1):
            change = table[i - 1, j - 1] + (word != other)
            table[i, j] = min(change, table[i - 1, j] + 1, table[i, j - 1] + 1)
    pairs, i, j = [], len(heard), len(said)
    while i and j:
        if heard[i - 1] == said[j - 1] and table[i, j] == table[i - 1, j - 1]:
            pairs.append((i - 1, j - 1))
        if table[i, j] == table[i - 1, j - 1] + (heard[i - 1] != said[j - 1]):
            i, j = i - 1, j - 1
        elif table[i, j] == table[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return pairs[::-1], int(table[-1, -1])


def _truth_of(truths: Mapping[str, Truth], source: str) -> Truth:
    truth = truths[source]
    return truths[truth.copy_of] if truth.copy_of else truth


def speakers(truths: Mapping[str, Truth], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of spans whose speaker is right, each found name standing for one voice at most and each voice
    for one name (the best assignment)."""
    pairs: list[tuple[str, str]] = []
    for row in rows:
        truth = truths[row["meta"]["source"]]
        if truth.copy_of:
            continue  # their times may be others
        text, begun = row["text_list"][0], row["meta"]["source_start_s"]
        for start, end, name in zip(
            text["speech_start"], text["speech_end"], row["meta"]["speakers"], strict=True
        ):
            said: dict[str, float] = defaultdict(float)
            for first, last, voice, _ in truth.spoken():
                said[voice] += max(0.0, min(end + begun, last) - max(start + begun, first))
            if sum(said.values()) > 0:
                pairs.append((name, max(said, key=lambda voice: said[voice])))
    names, voices = sorted({one for one, _ in pairs}), sorted({one for _, one in pairs})
    if not pairs:
        return {"spans": 0, "right": 0.0, "speakers_found": 0, "speakers_there": 0}
    counts = np.array([[pairs.count((name, voice)) for voice in voices] for name in names])
    rows_of, columns = linear_sum_assignment(-counts)
    right = int(counts[rows_of, columns].sum())
    return {
        "spans": len(pairs),
        "right": round(right / max(1, len(pairs)), 4),
        "speakers_found": len(names),
        "speakers_there": len(voices),
        "table": {name: dict(Counter(v for n, v in pairs if n == name)) for name in names},
    }


def seen_speaking(
    truths: Mapping[str, Truth], rows: Sequence[dict[str, Any]], offered: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Clips kept as a speaking face in which speech is not said by a face that is seen, of those that had
    such speech; and what was kept of clips in which all of it is."""
    kept = {row["data_id"] for row in rows if row["meta"].get("speaking_face") is True}
    unseen_kept, unseen_all, seen_kept, seen_all, named = 0, 0, 0, 0, []
    for clip in offered:
        truth = truths[clip["source"]]
        if truth.copy_of:
            continue
        inside = [
            (min(last, clip["end_s"]) - max(first, clip["start_s"]), seen)
            for first, last, _, seen in truth.spoken()
            if min(last, clip["end_s"]) > max(first, clip["start_s"]) + WORD_EDGE_S
        ]
        if not inside:
            continue
        if all(seen for _, seen in inside):
            seen_all, seen_kept = seen_all + 1, seen_kept + (clip["data_id"] in kept)
        else:
            unseen_all += 1
            if clip["data_id"] in kept:
                unseen_kept += 1
                named.append(clip["data_id"])
    return {
        "unseen_kept": unseen_kept,
        "unseen_clips": unseen_all,
        "unseen_kept_share": round(unseen_kept / max(1, unseen_all), 4),
        "of_kept": round(unseen_kept / max(1, len(kept)), 4),
        "seen_kept": seen_kept,
        "seen_clips": seen_all,
        "seen_kept_share": round(seen_kept / max(1, seen_all), 4),
        "named": named,
    }


def overlays(
    truths: Mapping[str, Truth], rows: Sequence[dict[str, Any]], offered: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Clips with a text on the picture that are kept, and clips without one that are rejected for one."""
    kept = {row["data_id"] for row in rows}
    named = [clip for clip in offered if truths[clip["source"]].overlay]
    wrong = [clip["data_id"] for clip in offered if clip["stage"] == "overlay" and clip not in named]
    through = [clip["data_id"] for clip in named if clip["data_id"] in kept]
    return {"clips_with_text": len(named), "kept": through, "wrongly_rejected": wrong}


def offered_clips(results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every clip that was cut, kept or not: data_id, source, start_s, end_s, stage of its rejection."""
    clips = []
    for name, result in results.items():
        for clip in result["clips"]:
            end_s = clip["start_s"] + clip["num_frames"] / clip["fps"]
            clips.append({**_times(clip, name, end_s), "stage": ""})
        for one in result["rejected"]:
            if one["data_id"]:
                clips.append({**_times(one, name, one["start_s"] + one["duration_s"]), "stage": one["stage"]})
    return sorted(clips, key=lambda clip: clip["data_id"])


def _times(clip: Mapping[str, Any], source: str, end_s: float) -> dict[str, Any]:
    return {"data_id": clip["data_id"], "source": source, "start_s": clip["start_s"], "end_s": end_s}


def cut_words(truths: Mapping[str, Truth], clips: Sequence[dict[str, Any]]) -> list[str]:
    """Clips whose begin or end lies inside a true word, with the word."""
    wrong = []
    for clip in clips:
        for word in _truth_of(truths, clip["source"]).words if not truths[clip["source"]].copy_of else ():
            for edge in (clip["start_s"], clip["end_s"]):
                if word.start_s + WORD_EDGE_S < edge < word.end_s - WORD_EDGE_S:
                    wrong.append(f"{clip['data_id']} at {edge:.2f} s in {word.word!r}")
    return wrong


def copies(
    truths: Mapping[str, Truth], rows: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Clips of a copy that stand in the set beside clips of the same moments of its original."""
    missed, offered, refused = (
        [],
        0,
        Counter(one["stage"] for one in rejected if truths[one["source"]].copy_of),
    )
    for name, truth in truths.items():
        if not truth.copy_of:
            continue
        offered += 1
        moved_s = 0.3 if name.startswith("trimmed") else 0.0
        both = [
            [
                (
                    row["meta"]["source_start_s"] + shift,
                    row["meta"]["source_start_s"] + shift + row["video_info"][0]["duration"],
                    row["data_id"],
                )
                for row in rows
                if row["meta"]["source"] == source
            ]
            for source, shift in ((name, moved_s), (truth.copy_of, 0.0))
        ]
        for first, last, data_id in both[0]:
            for begin, end, other in both[1]:
                overlap = min(last, end) - max(first, begin)
                if overlap > 0.5 * min(last - first, end - begin):
                    missed.append(f"{data_id} beside {other}")
    return {"copies": offered, "missed": missed, "their_clips_rejected_by": dict(refused)}
