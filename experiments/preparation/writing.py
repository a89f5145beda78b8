"""A finished set into its folder: manifest, clips, references, what was rejected, summary and page."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from experiments.preparation.assemble import Assembled
from experiments.preparation.page import report_page
from experiments.preparation.records import SPEECH_RATE_HZ
from pretrain.data.manifest import read_manifest
from pretrain.files import write_json
from pretrain.jsonl import dump
from pretrain.media.read import read_media
from pretrain.media.write import write_wav

MAX_REFERENCE_S = 10.0
GAP_S = 0.1  # before each span of a reference


def write_set(assembled: Assembled, folder: Path, seconds: float) -> None:
    """Writes manifest.jsonl, clips, references, rejected.jsonl, summary.json and report.html."""
    for name, file in assembled.files.items():
        _put(file, folder / name)
    for name, files in assembled.references.items():
        sounds = [soundfile.read(file, dtype="float32")[0] for file in files]
        gap = np.zeros(round(GAP_S * SPEECH_RATE_HZ), np.float32)
        joined = np.concatenate([part for sound in sounds for part in (gap, sound)])
        write_wav(folder / name, joined[: round(MAX_REFERENCE_S * SPEECH_RATE_HZ)], SPEECH_RATE_HZ)
    for name, file in assembled.given_references.items():
        sound = read_media(file, want_video=False, want_audio=True)
        assert sound.waveform is not None
        write_wav(folder / name, sound.waveform[: round(MAX_REFERENCE_S * SPEECH_RATE_HZ)], SPEECH_RATE_HZ)
    for name in ("clips", "references"):
        (folder / name).mkdir(exist_ok=True)
    dump(folder / "manifest.jsonl", assembled.rows)
    dump(folder / "rejected.jsonl", assembled.rejected)
    if assembled.rows:
        read_manifest(folder / "manifest.jsonl", max_bad_fraction=0.0)  # raises where a row is not public
    summary = {**assembled.summary, "seconds": round(seconds, 2)}
    write_json(folder / "summary.json", summary)
    (folder / "report.html").write_text(report_page(replace(assembled, summary=summary), folder))


def _put(file: Path, target: Path) -> None:
    """A link to a result, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
