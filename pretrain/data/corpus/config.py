"""How much of what the corpus holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Numbers of clips, shares of kinds, numbers of prompts. Raises ValueError where they make no corpus."""

    seed: int = 0
    paired: int = 900
    audio_only: int = 700
    hq_audio: int = 300
    validation: int = 208
    dialogue_share: float = 0.3  # of paired
    event_share: float = 0.06  # of paired
    camera_share: float = 0.08  # of paired
    audio_dialogue_share: float = 0.25  # of audio_only
    audio_event_share: float = 0.05  # of audio_only
    swapped_share: float = 0.2  # of clips with one speaker: a face with another character's voice
    dialogue_swapped_share: float = 0.5  # of dialogues: two voices that are not both their faces' usual ones
    described_share: float = 0.5  # of texts: say what the face's usual voice is like
    noisy_share: float = 0.25  # of paired and audio_only: noise at 25..40 dB below the speech
    held_out_pairs: int = 8  # word-voice pairs that no training row has
    references_per_voice: int = 8
    prompts_heldout_pairs: int = 48
    prompts_disagree: int = 100
    prompts_dialogue: int = 48  # and as many with the references exchanged
    prompts_camera: int = 24
    prompts_align_train: int = 128
    prompts_align_held_out: int = 208
    talk_a: int = 64  # clips of several words, to train a sync reward
    talk_b: int = 64  # its judge
    talk_test: int = 104  # and to test both
    processes: int = 2

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_share") and not 0 <= value <= 1:
                raise ValueError(f"{item.name}: expected a share in [0, 1], got {value}")
            if isinstance(value, int) and item.name != "seed" and value < 0:
                raise ValueError(f"{item.name}: expected a count, got {value}")
        if (
            self.dialogue_share + self.event_share + self.camera_share > 1
            or self.audio_dialogue_share + self.audio_event_share > 1
        ):
            raise ValueError(
                "dialogue_share, event_share and camera_share: more than 1 together; lower one of them"
            )
        if self.processes < 1 or self.references_per_voice < 2:
            raise ValueError(
                f"processes, references_per_voice: at least 1 and 2, got {self.processes} and "
                f"{self.references_per_voice}"
            )
