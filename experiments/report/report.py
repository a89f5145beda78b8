"""Write `demo.html` and its pictures from measurements and clips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from experiments.report.cards import Details, card_of, detail_of, transcript_and_voices
from experiments.report.gates import Gate, check_gates, read_reports
from experiments.report.generated_clips import camera_moves, dialogues
from experiments.report.metric_keys import MetricsByName
from experiments.report.page import AlignmentPart, Card, Section, page
from experiments.report.pictures import before_after_dots, contact_sheet, loss_curves, reward_curves
from experiments.report.task_clips import task_sections
from experiments.scoring.rows import read_scores
from experiments.scoring.samples import (
    SourceClip,
    codec_samples,
    generated_samples,
    real_samples,
)
from experiments.scoring.sets import (
    ALIGN_SET,
    MAIN_SET,
    SCORES,
)
from pretrain.codecs.load import load_codecs
from pretrain.files import replacing

NUM_EXAMPLES = 4
NUM_READ = 64  # clips per set that are searched for examples
NUM_REAL = 208  # real clips of each kind, likewise


def report(
    evaluation: Path,
    scores: Path,
    pretrain: Mapping[str, Path],
    generated: Path,
    corpus: Path,
    codec: Path,
    out: Path,
    facts: Mapping[str, Any] = {},
    alignment: Path | None = None,
    aligned: Path | None = None,
    align_log: Path | None = None,
    gates: Sequence[Gate] = (),
    known: MetricsByName | None = None,
) -> Path:
    """Writes the page and its pictures into `out` and returns the page's path.

    demo.html, contact_sheet.png, losses.png; where `alignment` (what `evaluate` wrote of before and after) is
    there, before_after.png and, with `align_log` (metrics.jsonl of the alignment), alignment.png. `aligned`
    holds the aligned model's clips by prompt set.

    `evaluation` is what `evaluate` wrote, `scores` the folder of the clips' scores, `pretrain` maps stage
    names in order to folders with metrics.jsonl, `facts` are shown in a table (seconds per stage, memory,
    speed), `gates` are checked against the numbers, `known` metrics have titles (None = the catalog's).
    Examples are the first prompts of each voice, never chosen by their scores. Raises FileNotFoundError or
    ValueError in one line.
    """
    reports = read_reports(evaluation, alignment)
    details = {
        (*group, row["data_id"]): row for group, rows in read_scores(scores / SCORES).items() for row in rows
    }
    rows = _compared(generated, corpus, codec)
    about = (
        "The first prompts of the set, one per voice, beside a real clip with the same voice and, if there "
        "is one, the same word."
    )
    cards = [(row[-1].clip.prompt, [card_of(MAIN_SET, sample, details) for sample in row]) for row in rows]
    sections = [Section("Listen and look", about, cards)]
    sections += [dialogues(generated, details), camera_moves(generated, details)]
    sections += task_sections(generated, pretrain, details)
    losses = loss_curves(pretrain)
    sheet = contact_sheet(
        [{s.source: (s.clip, _caption(s, details)) for s in row} for row in rows],
        [_quoted(row[-1].clip.prompt) for row in rows],
    )
    _write(out / "contact_sheet.png", sheet)
    if losses is not None:
        _write(out / "losses.png", losses)
    compared = _alignment(reports.alignment, aligned, align_log, generated, details, out)
    results = check_gates(gates, reports)
    html = page(reports.metrics, results, sections, losses, facts, compared, known)
    return _write(out / "demo.html", html.encode())


def _alignment(
    found: Mapping[str, Any],
    aligned: Path | None,
    log: Path | None,
    generated: Path,
    details: Details,
    out: Path,
) -> AlignmentPart | None:
    """Before/after section; its pictures are written to `out`. None if nothing was aligned."""
    if not found:
        return None
    dots, curves = before_after_dots(found), reward_curves(log) if log else None
    _write(out / "before_after.png", dots)
    if curves is not None:
        _write(out / "alignment.png", curves)
    about = "The first prompts of the set, one per voice, before and after; never chosen by their scores."
    rows = _before_after(generated / ALIGN_SET, aligned / ALIGN_SET, details) if aligned else []
    return AlignmentPart(found, Section("The same prompts", about, rows), dots, curves)


def _before_after(before: Path, after: Path, details: Details) -> list[tuple[str, list[Card]]]:
    samples = generated_samples(after, "speech", limit=NUM_READ, source="aligned")
    aligned = {sample.data_id: sample for sample in samples}
    rows = []
    for sample in _first_per_voice(generated_samples(before, "speech", limit=NUM_READ)):
        if sample.data_id not in aligned:
            raise ValueError(
                f"{after}: no clip {sample.data_id}, which {before} has; generate both sets from the same "
                "prompts"
            )
        cards = [
            replace(card_of(ALIGN_SET, sample, details), source="before"),
            card_of(ALIGN_SET, aligned[sample.data_id], details),
        ]
        rows.append((sample.clip.prompt, cards))
    return rows


def _compared(generated: Path, corpus: Path, codec: Path) -> list[list[SourceClip]]:
    """Per voice: a real clip, its codec round trip, and the first generated clip."""
    chosen = _first_per_voice(generated_samples(generated / MAIN_SET, "speech", limit=NUM_READ))
    real_clips = real_samples(corpus / "validation.jsonl", NUM_REAL)
    rows, codecs = [], load_codecs(codec)
    for sample in chosen:
        voice = [real for real in chain(*real_clips.values()) if real.clip.voices == sample.clip.voices]
        same = [real for real in voice if real.clip.spans == sample.clip.spans] or voice
        rows.append([*same[:1], *codec_samples(same[:1], codecs), sample])
    return rows


def _first_per_voice(samples: Sequence[SourceClip]) -> list[SourceClip]:
    by_voices: dict[tuple[str, ...], list[SourceClip]] = defaultdict(list)
    for sample in samples:
        by_voices[sample.clip.voices].append(sample)
    examples = [group[k] for k in range(NUM_EXAMPLES) for group in by_voices.values() if k < len(group)]
    return examples[:NUM_EXAMPLES]


def _caption(sample: SourceClip, details: Details) -> str:
    scored = detail_of(MAIN_SET, sample, details)
    transcript, voices = transcript_and_voices(scored)
    return f"says “{' '.join(sample.clip.spans)}”, recognised “{transcript}”, nearest voice {voices or '–'}"


def _quoted(prompt: str) -> str:
    return prompt.replace("<S>", "“").replace("<E>", "”")


def _write(path: Path, content: bytes) -> Path:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
