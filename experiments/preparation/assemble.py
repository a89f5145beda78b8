"""From the results of all sources to the set: near-duplicates, speakers, references, rows, summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.preparation.config import PrepareConfig
from experiments.preparation.duplicates import near_duplicates
from experiments.preparation.moments import shifted_duplicates
from experiments.preparation.records import Rejection
from experiments.preparation.services import Services
from experiments.preparation.source_work import Settings
from experiments.preparation.speakers import SpanKey, assign_speakers, choose_references
from pretrain.data.plain import safe_id
from rewards.speech.folding import fold, split_words


@dataclass(frozen=True)
class Assembled:
    """The set before it is written; `files`: path below the output -> file to be linked or copied there."""

    rows: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    files: dict[str, Path]
    references: dict[str, list[Path]]  # below the output -> sounds that are joined there
    given_references: dict[str, Path]  # below the output -> a sound of the user's
    summary: dict[str, Any]


Result = tuple[Mapping[str, Any], Path]  # a source's result and its folder


def assemble(
    results: Sequence[Result],
    rejected: Sequence[Rejection],
    settings: Settings,
    services: Services,
    left_out: Mapping[str, int],
) -> Assembled:
    """Rows in the order of the sources. Pure but for the existence of files."""
    config = settings.config
    refused = [one.to_json() for one in rejected]
    files: dict[str, Path] = {}
    clips: list[dict[str, Any]] = []
    for result, folder in _once(results, refused):
        clips += [{**clip, "folder": folder} for clip in result["clips"]]
        for one in result["rejected"]:
            if preview := one.get("preview"):
                files[f"rejected/{preview}"] = folder / preview
                one = {**one, "preview": f"rejected/{preview}"}
            refused.append(one)
    twice = _near_duplicates(clips, config)
    for place, (other, share) in twice.items():
        refused.append(_twice(clips[place], clips[other]["data_id"], share, config.near_duplicate))
        name = f"rejected/{clips[place]['data_id']}.mp4"
        files[name] = clips[place]["folder"] / f"{clips[place]['data_id']}.mp4"
    clips = [clip for place, clip in enumerate(clips) if place not in twice]
    speakers = assign_speakers(clips, config.same_speaker, config.same_speaker_across, config.speaker)
    chosen = choose_references(clips, speakers, config.min_reference_s)
    references = {
        _reference(name, number): [
            clips[key.clip]["folder"] / f"{clips[key.clip]['data_id']}.{key.span}.wav" for key in keys
        ]
        for name, some in chosen.items()
        for number, keys in enumerate(some)
    }
    given = {
        _given_reference(clip["given"]["reference"]): Path(clip["given"]["reference"])
        for clip in clips
        if clip["given"]["reference"]
    }
    rows = [_row(place, clip, speakers, chosen) for place, clip in enumerate(clips)]
    files |= {f"clips/{clip['data_id']}.mp4": clip["folder"] / f"{clip['data_id']}.mp4" for clip in clips}
    summary = _summary(results, rows, refused, settings, services, left_out, set(speakers.values()))
    return Assembled(rows, refused, files, references, given, summary)


def _once(results: Sequence[Result], refused: list[dict[str, Any]]) -> Iterator[Result]:
    """Results without those of fetched files of the same bytes, of which the first that has a text counts;
    the others go to `refused`."""
    kept: dict[str, Mapping[str, Any]] = {}
    for result, _ in results:
        digest = result.get("sha256", "")
        if digest not in kept or (result.get("has_text") and not kept[digest].get("has_text")):
            kept[digest] = result
    for result, folder in results:
        if (digest := result.get("sha256", "")) and kept[digest] is not result:
            reason = f"the same bytes as {kept[digest]['source']}"
            one = Rejection("duplicate", "sha256", None, None, reason, source=result["source"])
            refused.append(one.to_json())
            continue
        yield result, folder


def _near_duplicates(
    clips: Sequence[Mapping[str, Any]], config: PrepareConfig
) -> dict[int, tuple[int, float]]:
    """As `duplicates.near_duplicates`; the largest picture of alike clips is kept, then the first."""
    order = sorted(
        range(len(clips)), key=lambda place: (-clips[place]["height"] * clips[place]["width"], place)
    )
    found = near_duplicates(
        [clips[place]["bits"] for place in order],
        [clips[place]["print"] for place in order],
        config.near_duplicate,
        config.same_sound,
        [_sure_words(clips[place]) for place in order],
    )
    left = [place for place in range(len(order)) if place not in found]
    shifted = shifted_duplicates(
        [clips[order[place]]["print"] for place in left],
        [clips[order[place]]["track"] for place in left],
        config.near_duplicate,
        config.same_sound,
    )
    found |= {left[place]: (left[other], share) for place, (other, share) in shifted.items()}
    return dict(sorted((order[place], (order[other], share)) for place, (other, share) in found.items()))


def _sure_words(clip: Mapping[str, Any]) -> str:
    """The words of a given text that was aligned, "" for recognised ones, which differ between copies."""
    sure = clip["words_by"] in ("alignment", "subtitles")
    return " ".join(split_words(fold(" ".join(span["text"] for span in clip["spans"])))) if sure else ""


def _twice(clip: Mapping[str, Any], other: str, share: float, limit: float) -> dict[str, Any]:
    found = Rejection(
        "near_duplicate",
        "differing_bits",
        round(share, 4),
        limit,
        f"looks and sounds like {other}",
        source=clip["source"],
        data_id=clip["data_id"],
        start_s=clip["start_s"],
        duration_s=clip["num_frames"] / clip["fps"],
        preview=f"rejected/{clip['data_id']}.mp4",
    )
    return found.to_json()


def _reference(speaker: str, number: int) -> str:
    return f"references/{safe_id(speaker)}-{number}.wav"


def _given_reference(path: str) -> str:
    return f"references/given-{safe_id(path)}.wav"


def _row(
    place: int,
    clip: Mapping[str, Any],
    speakers: Mapping[SpanKey, str],
    chosen: Mapping[str, list[list[SpanKey]]],
) -> dict[str, Any]:
    """The public row of a clip; a reference is never of the clip itself."""
    spans, measures, labels = clip["spans"], clip["measures"], clip["labels"]
    names = [speakers.get(SpanKey(place, number), "") for number in range(len(spans))]
    references = [_reference_of(place, name, clip, chosen) for name in names]
    quality = {
        "snr_db": measures.get("snr_db"),
        "loudness_dbfs": measures.get("loudness_lufs"),
        "num_speakers": len({name for name in names if name}),
        "face_visible": labels.get("face_visible"),
        "clipped": measures.get("clipped_share", 0.0) > 0.001,
    }
    meta = {
        "source": clip["source"],
        "source_start_s": clip["start_s"],
        "num_frames": clip["num_frames"],
        "words": [span["text"] for span in spans],
        "speakers": names,
        "reference_paths": references,
        "caption_by": clip["caption_by"],
        "words_by": clip["words_by"],
        "measures": measures,
        **labels,
    }
    return {
        "data_id": clip["data_id"],
        "video_info": [
            {
                "data_path": f"clips/{clip['data_id']}.mp4",
                "fps": clip["fps"],
                "duration": round(clip["num_frames"] / clip["fps"], 6),
                "image_width": clip["width"],
                "image_height": clip["height"],
            }
        ],
        "text_list": [
            {
                "text": clip["text"],
                "speech_start": [span["start_s"] for span in spans],
                "speech_end": [span["end_s"] for span in spans],
            }
        ],
        "audio_splits_info_tagging": [{key: value for key, value in quality.items() if value is not None}],
        "meta": meta,
    }


def _reference_of(
    place: int, speaker: str, clip: Mapping[str, Any], chosen: Mapping[str, list[list[SpanKey]]]
) -> str | None:
    if clip["given"]["reference"]:
        return _given_reference(clip["given"]["reference"])
    for number, keys in enumerate(chosen.get(speaker, [])):
        if all(key.clip != place for key in keys):
            return _reference(speaker, number)
    return None


def _summary(
    results: Sequence[Result],
    rows: Sequence[Mapping[str, Any]],
    refused: Sequence[Mapping[str, Any]],
    settings: Settings,
    services: Services,
    left_out: Mapping[str, int],
    speakers: set[str],
) -> dict[str, Any]:
    source_s = sum(result["seconds"] for result, _ in results)
    spent: Counter[str] = Counter()
    for result, _ in results:
        spent.update(result["stage_s"])
    spent["cut"] -= sum(spent[name.partition(":")[2]] for name in settings.config.steps) + spent["write"]
    speeds = {name: round(source_s / seconds, 2) for name, seconds in spent.items() if seconds > 1e-3}
    return {
        "sources": len(results),
        "source_seconds": round(source_s, 3),
        "clips": len(rows),
        "kept_seconds": round(sum(row["video_info"][0]["duration"] for row in rows), 3),
        "rejected": dict(sorted(Counter(one["stage"] for one in refused).items())),
        "speakers": len(speakers),
        "mended": sum("mended" in row["meta"] for row in rows),
        "with_reference": sum(any(row["meta"]["reference_paths"]) for row in rows),
        "speaking_faces": "checked" if services.syncnet else "not checked (no --syncnet)",
        "left_out": dict(left_out),
        "stage_seconds": {name: round(seconds, 3) for name, seconds in sorted(spent.items())},
        "video_seconds_per_core_second": dict(sorted(speeds.items())),
        "slowest": min(speeds, key=lambda name: speeds[name]) if speeds else "",
        "settings": {"fps": settings.fps, "lengths": list(settings.only), **asdict(settings.config)},
    }
