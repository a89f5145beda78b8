"""What one clip of the corpus holds: everything a renderer needs, and nothing random left in it."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.data.corpus.cast import CHARACTER_BY_NAME

FPS = 24.0
SHORT_FRAMES, LONG_FRAMES = 25, 49  # one word; two words (1 + 4n frames, 26 and 51 audio tokens)
TALK_FRAMES = 97  # several words with pauses
CLEAN_SNR_DB = 60.0  # the label of sound without added noise


@dataclass(frozen=True)
class Turn:
    """One spoken word. `character` "" = nobody is seen."""

    word: str
    voice: str
    character: str
    take: int  # which of the bank's utterances of this word and voice
    onset_s: float
    reference: str  # name of the reference sound, another recording of the same voice; "" = none


@dataclass(frozen=True)
class SoundEvent:
    """A motion with a sound: "ball" (thud at each impact) or "light" (tone while lit)."""

    name: str
    colour: str
    tone: str  # what the prompt calls the sound; a key of sound.THUDS_HZ or sound.TONES_HZ
    first_s: float  # first impact, or the light's first flash
    period_s: float


@dataclass(frozen=True)
class ClipPlan:
    """A clip or, without `background`, a sound alone."""

    data_id: str
    set_name: str
    kind: str  # speech, dialogue, event, camera or talk
    text: str
    num_frames: int
    turns: tuple[Turn, ...] = ()
    event: SoundEvent | None = None
    background: str = ""
    camera: str = "static"
    described_voice: str = ""  # voice that the text describes; "" = it describes none
    gain_db: float = 0.0
    snr_db: float = CLEAN_SNR_DB
    pair_held_out: bool = False
    # x, y (pixels) and scale of the one head that says all turns; None = by their number
    place: tuple[float, float, float] | None = None

    @property
    def has_video(self) -> bool:
        return bool(self.background)

    @property
    def swapped(self) -> bool:
        """Someone is seen speaking with another character's voice."""
        return any(
            turn.character and CHARACTER_BY_NAME[turn.character].voice != turn.voice for turn in self.turns
        )
