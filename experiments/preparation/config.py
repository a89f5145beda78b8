"""The recipe's section `prepare`: limits of what is kept, and which step does what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STEPS = "experiments.preparation"
CLIP_STEPS = (
    f"{STEPS}.picture:visible",
    f"{STEPS}.picture:moving",
    f"{STEPS}.overlays:lettered",
    f"{STEPS}.sound:audible",
    f"{STEPS}.speech:spoken",
    f"{STEPS}.faces:seen_speaking",
    f"{STEPS}.captions:described",
)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Limits in seconds, pixels and shares; 0 (1 for shares that are at most) lets everything pass. Steps are
    functions, `package.module:function`. Frame rate and lengths of clips are those of `encode`.

    Raises ValueError for a limit that none can keep.
    """

    min_s: float = 1.0  # of a clip
    max_s: float = 10.0
    max_source_s: float = 4 * 3600.0
    max_side: int = 1280  # larger pictures are reduced
    min_side: int = 32
    # scenes
    content_threshold: float = 27.0  # of PySceneDetect's ContentDetector
    adaptive_threshold: float = 3.0  # of its AdaptiveDetector
    flash: float = 0.1  # change of histogram across a cut below which it is a flash
    trim_gradual_s: float = 0.5  # taken off a scene where it fades or dissolves
    # picture
    dark_luma: float = 24.0  # rows, columns and clips whose 99th percentile is below are black
    max_text_share: float = 0.004  # of the picture under lines of letters that stand still; 1 keeps all
    min_motion_px: float = 0.01  # mean over a pair of pictures at 160 pixels of width; lips alone: 0.02
    # sound
    min_loudness_lufs: float = -50.0
    max_clipped_share: float = 0.05
    min_snr_db: float = -5.0
    # speech
    min_speech_s: float = 0.3
    min_speech_share: float = 0.0
    min_confidence: float = 0.7  # mean of the recogniser's words; words of a given text have none
    # PocketSphinx' score of a given text for 3 s of words: right ones 0.5 and more, wrong ones at most 0.26
    min_alignment: float = 0.33
    min_coverage: float = 0.6  # of the speech by the words of a given text; with half of them missing 0.5
    pause_s: float = 0.12  # shorter pauses are not cut at
    turn_pause_s: float = 0.3  # speakers change in pauses
    speaker: str = ""  # who speaks in all of them, where a clip names nobody; "" = voices are clustered
    same_speaker: float = 0.75  # cosine of voices at which clusters join (average linkage), within a source
    same_speaker_across: float = 0.8  # and of speakers of several sources
    min_reference_s: float = 1.0
    # who is seen
    min_face_share: float = 0.0  # of pictures at 5 a second that have a face
    # of a network of `nava syncnet`: 95 % lower bound of the correlation of lips and sound over a clip, and
    # the lowest correlation of any of its spans; dubbed speech reaches 0.17 and 0.6
    min_sync_correlation: float = 0.2
    min_sync_of_span: float = 0.3
    min_sync_confidence: float | None = None  # Sync-C; 3 for the published SyncNet, else no limit
    max_sync_offset_frames: float = 1.0  # at 25 fps; it is not corrected
    # the whole set
    near_duplicate: float = 0.15  # share of differing bits of picture hashes
    same_sound: float = 0.9  # correlation of loudness in bands, which near-duplicates have too
    # what does it
    scenes: str = f"{STEPS}.scenes:detected"
    activity: str = f"{STEPS}.activity:webrtc"
    words: str = f"{STEPS}.words:sphinx"
    steps: tuple[str, ...] = CLIP_STEPS
    text_beside: Literal["auto", "caption", "transcript"] = "auto"  # what clip.txt is
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= self.max_s:
            raise ValueError(f"min_s {self.min_s:g} and max_s {self.max_s:g}: 0 < min_s <= max_s is needed")
        shares = ("flash", "max_clipped_share", "min_confidence", "near_duplicate", "same_sound")
        for name in (*shares, "same_speaker", "same_speaker_across"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in 0..1, got {getattr(self, name):g}")
