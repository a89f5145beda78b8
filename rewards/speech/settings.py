"""PocketSphinx settings: one set for rewards, another for the judge, which is in no rubric."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RecognizerSettings:
    """Front end and grammar of a `Recognizer`; `name` becomes part of metric names."""

    name: str
    word_insertion_penalty: float
    trim_db: float  # quieter than the loudest 10 ms by this much counts as silence at the ends
    trim_margin_s: float
    silence_s: float  # put around the speech: the cepstral mean needs a silent start and end
    peak: float  # of full scale
    noise_dbfs: float | None = None  # white noise over everything, always the same; None = digital silence

    def __post_init__(self) -> None:
        if not (
            self.word_insertion_penalty > 0
            and 0 < self.peak <= 1
            and min(self.trim_db, self.trim_margin_s, self.silence_s) >= 0
        ):
            raise ValueError(
                f"{self.name}: {self}; penalty and peak must be above 0, peak at most 1, nothing negative"
            )


# Chosen on one-second clips of single flite words, clean and after a 64-mel Griffin-Lim round trip: with the
# library's own word insertion penalty (0.65) a grammar of `<word>+` yields a second, short word in a fifth of
# them.
REWARD = RecognizerSettings(
    name="pocketsphinx",
    word_insertion_penalty=1e-3,
    trim_db=40.0,
    trim_margin_s=0.05,
    silence_s=0.2,
    peak=0.95,
)
# Never in a rubric. As accurate as REWARD on 208 real clips (no error) and after the codec (one error), but
# it transcribes a fifth of generated clips differently: other level, silence with a noise floor, looser trim,
# lower word insertion penalty.
JUDGE = RecognizerSettings(
    name="pocketsphinx_judge",
    word_insertion_penalty=0.05,
    trim_db=30.0,
    trim_margin_s=0.08,
    silence_s=0.3,
    peak=0.5,
    noise_dbfs=-60.0,
)
SETTINGS = {settings.name: settings for settings in (REWARD, JUDGE)}
