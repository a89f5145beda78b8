"""Clips as cards of the page, with what was measured of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.report.page import Card
from experiments.report.pictures import clip_png
from experiments.scoring.samples import FPS, SAMPLE_RATE_HZ, SourceClip
from pretrain.media.write import write_mp4

Details = Mapping[tuple[str, str, str], Mapping[str, Any]]  # by prompt set, source, data id


def card_of(prompt_set: str, sample: SourceClip, details: Details) -> Card:
    """A clip with both modalities. Raises ValueError for one that was not scored."""
    clip, scored = sample.clip, detail_of(prompt_set, sample, details)
    assert clip.frames is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, clip.frames, FPS, clip.waveform, SAMPLE_RATE_HZ)
        mp4 = path.read_bytes()
    words, expected_voices = " ".join(clip.spans), " ".join(clip.voices)
    lips = scored["scores"].get("lip_loudness_correlation")
    return Card(
        sample.source,
        mp4,
        clip_png(clip),
        *transcript_and_voices(scored),
        words=words,
        wanted_voices=expected_voices,
        lips=lips,
    )


def detail_of(prompt_set: str, sample: SourceClip, details: Details) -> Mapping[str, Any]:
    """The clip's row of scores. Raises ValueError where there is none."""
    key = (prompt_set, sample.source, sample.data_id)
    if key not in details:
        raise ValueError(
            f"{sample.data_id}: {sample.source} clip of {prompt_set} is not in the evaluation; run `nava "
            "evaluate` again"
        )
    return details[key]


def transcript_and_voices(scored: Mapping[str, Any]) -> tuple[str, str]:
    """Transcript and nearest voices."""
    texts = scored["texts"]
    return texts.get("wer_pocketsphinx", ""), texts.get("voice_accuracy_resemblyzer", "")
