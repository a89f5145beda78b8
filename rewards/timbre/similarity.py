"""Voice similarity of a clip to its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.base import score_prepared, unscored
from rewards.timbre.encoder import VoiceEncoder
from rewards.timbre.spans import spoken_with_reference
from rewards.types import Clip, Score


class TimbreSimilarity:
    """Cosine of a clip's and its reference's voice embeddings, mean over spans; higher is better.

    Spans without a reference are skipped. A clip with several spans is cut by their times, else at its
    longest pauses; channels are averaged before anything else. Score.parts: `span_<i>`. NaN with a reason
    without reference, with a silent span, or without usable sound. The metric is `sim_<encoder>`; it may be
    called `sim`, as in the Seed-TTS and NAVA tables, only when the encoder is that benchmark's
    (`encoder.is_seed_tts`). Raises ValueError otherwise.
    """

    def __init__(self, encoder: VoiceEncoder, name: str = "") -> None:
        if name == "sim" and not getattr(encoder, "is_seed_tts", False):
            raise ValueError(
                f"metric sim: the encoder is {encoder.name}, not the published WavLM-large + ECAPA-TDNN "
                "file; leave the name out"
            )
        self.encoder = encoder
        self.name = name or f"sim_{encoder.name}"

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        return score_prepared(clips, spoken_with_reference, self._score)

    def _score(self, prepared: list[list[tuple[int, np.ndarray, np.ndarray]]]) -> list[Score]:
        pairs = [pair for spans in prepared for pair in spans]
        embeddings = self.encoder.embed(
            [sound for _, sound, _ in pairs] + [reference for _, _, reference in pairs]
        )
        cosines = iter((embeddings[: len(pairs)] * embeddings[len(pairs) :]).sum(axis=1).tolist())
        return [_mean({f"span_{index}": next(cosines) for index, _, _ in spans}) for spans in prepared]


def _mean(parts: dict[str, float]) -> Score:
    value = float(np.mean(list(parts.values())))
    return (
        Score(value=value, parts=parts)
        if np.isfinite(value)
        else unscored("the encoder's answer is not finite")
    )
