"""The interface of recognisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Transcriber(Protocol):
    """Speech to text. `name` becomes part of the metric's name and must be unique per configuration.

    `name` becomes part of the metric's name, so two set-ups that hear differently need two names. Two more
    may be there: `language` (ISO 639; "" = found by the recogniser), and `refusal(text)`, why it cannot hear
    the words of a text, or "".
    """

    @property
    def name(self) -> str: ...

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """One text for each float32 [N] mono sound at 16 kHz, in order; "" when nothing is recognised.

        A text does not depend on the other sounds of its batch. Raises when the recogniser itself fails,
        never "" for that.
        """
        ...
