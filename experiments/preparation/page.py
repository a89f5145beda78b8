"""report.html of a prepared set: funnel, histograms, contact sheets with sound; one file, no scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.preparation.assemble import Assembled
from experiments.report.page import data_uri, marked_prompt, page_environment

EMBEDDED_BYTES = 24 << 20  # of clips inside the page; further ones are linked, beside it
SHOWN_KEPT, SHOWN_OF_STAGE = 24, 6
BINS = 16
# what is asked of a source and of a clip, in the order in which it is
STAGES = {
    "duplicate": "sources that are copies of others",
    "read": "sources that cannot be read",
    "text": "texts that cannot be used",
    "crash": "sources that killed their process",
    "error": "faults of the program",
    "length": "stretches without a clip of an allowed length",
    "picture": "black or tiny pictures",
    "still": "still pictures",
    "overlay": "text on the picture",
    "sound": "silent, clipped or noisy sound",
    "speech": "too little speech",
    "words": "words that are not sure",
    "faces": "no face",
    "sync": "lips that do not say what is heard",
    "caption": "no text",
    "near_duplicate": "near-duplicates",
}
MEASURES = {
    "seconds": "length, s",
    "speech_s": "speech, s",
    "snr_db": "noise, dB SNR",
    "loudness_lufs": "loudness, LUFS",
    "motion_px": "motion, px",
    "sharpness": "sharpness",
    "face_share": "share of pictures with a face",
    "confidence": "confidence of words",
    "text_share": "share of the picture under text",
    "sync_correlation_low": "lips and sound, lower bound of the correlation",
    "sync_confidence": "sync confidence",
}


@dataclass(frozen=True)
class Histogram:
    """Counts of one measure over the kept clips; heights are shares of the largest count."""

    title: str
    low: float
    high: float
    mean: float
    heights: Sequence[float]


@dataclass(frozen=True)
class SheetCard:
    """One clip of a contact sheet."""

    name: str
    video: str  # data URI or a path beside the page; "" = none
    text: str
    facts: str


def report_page(assembled: Assembled, folder: Path) -> str:
    """The page of a set that is being written to `folder`."""
    left = [EMBEDDED_BYTES]
    environment = page_environment()
    environment.filters |= {"marked_prompt": marked_prompt}
    return environment.get_template("prepared.html.j2").render(
        summary=assembled.summary,
        funnel=funnel(assembled),
        histograms=histograms(assembled.rows),
        kept=[_kept(row, folder, left) for row in _spread(assembled.rows, SHOWN_KEPT)],
        rejected=_rejected(assembled.rejected, folder, left),
        unread=[one for one in assembled.rejected if not one["data_id"]][:200],
    )


def funnel(assembled: Assembled) -> list[tuple[str, str, int, float]]:
    """(stage, what it takes out, how many, share of all that was looked at) in order, then what is kept."""
    counts = Counter(one["stage"] for one in assembled.rejected)
    total = max(1, len(assembled.rows) + sum(counts.values()))
    stages = [*STAGES, *sorted(set(counts) - set(STAGES))]
    rows = [
        (stage, STAGES.get(stage, "a step of one's own"), counts[stage]) for stage in stages if counts[stage]
    ]
    rows.append(("kept", "clips of the set", len(assembled.rows)))
    return [(stage, about, count, count / total) for stage, about, count in rows]


def histograms(rows: Sequence[Mapping[str, Any]]) -> list[Histogram]:
    found = []
    for name, title in MEASURES.items():
        values = (
            [row["video_info"][0]["duration"] for row in rows]
            if name == "seconds"
            else [row["meta"]["measures"][name] for row in rows if name in row["meta"]["measures"]]
        )
        if values:
            counts, edges = np.histogram(values, BINS)
            heights = (counts / counts.max()).round(3).tolist()
            found.append(Histogram(title, float(edges[0]), float(edges[-1]), float(np.mean(values)), heights))
    return found


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Evenly chosen items, so that all parts of a set are seen."""
    places = np.unique(np.linspace(0, max(0, len(items) - 1), min(count, len(items))).round().astype(int))
    return [items[place] for place in places] if items else []


def _kept(row: Mapping[str, Any], folder: Path, left: list[int]) -> SheetCard:
    meta, info = row["meta"], row["video_info"][0]
    voices = ", ".join(dict.fromkeys(filter(None, meta["speakers"]))) or "no speaker"
    facts = f"{info['duration']:.2f} s of {meta['source']} from {meta['source_start_s']:.2f} s, {voices}"
    return SheetCard(
        row["data_id"], _video(folder, info["data_path"], left), row["text_list"][0]["text"], facts
    )


def _rejected(
    rejected: Sequence[Mapping[str, Any]], folder: Path, left: list[int]
) -> list[tuple[str, list[SheetCard]]]:
    sheets = []
    for stage in dict.fromkeys([*STAGES, *(one["stage"] for one in rejected)]):
        shown = [one for one in rejected if one["stage"] == stage and one.get("preview")][:SHOWN_OF_STAGE]
        if shown:
            sheets.append((stage, [_card(one, folder, left) for one in shown]))
    return sheets


def _card(one: Mapping[str, Any], folder: Path, left: list[int]) -> SheetCard:
    measured = (
        f"{one['measure']} {one['value']:g}, limit {one['limit']:g}"
        if one["value"] is not None and one["limit"] is not None
        else one["measure"]
    )
    return SheetCard(one["data_id"], _video(folder, one["preview"], left), one["reason"], measured)


def _video(folder: Path, name: str, left: list[int]) -> str:
    size = (folder / name).stat().st_size
    if size > left[0]:
        return name
    left[0] -= size
    return data_uri((folder / name).read_bytes(), "video/mp4")
