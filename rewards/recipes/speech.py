"""Word error rates: embedded PocketSphinx, Whisper from a folder, a server of transcriptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rewards.base import Reward
from rewards.devices import device_for
from rewards.patience import PATIENCE_S
from rewards.recipes.base import SPEED_ONLY, ParkedOptions, Shared, needed

if TYPE_CHECKING:
    from rewards.speech.recognizer import Recognizer
    from rewards.speech.scoring import WerConvention

# "": any language, the one to use unless a published table is to be met; normalised: any language, as
# Whisper's normaliser with its faults mended; seed_tts_en, seed_tts_zh, verse_bench: letter by letter as
# these benchmarks count; normalised_english: Whisper's English one, numbers and contractions made equal
ScoringName = Literal["", "seed_tts_en", "seed_tts_zh", "verse_bench", "normalised"]
AnyScoringName = Literal["", "seed_tts_en", "seed_tts_zh", "verse_bench", "normalised", "normalised_english"]


@dataclass(frozen=True)
class VocabularyOptions:
    """Vocabulary of the recogniser, and its number of processes."""

    vocabulary: tuple[str, ...] = ()
    num_processes: int = field(default=1, metadata=SPEED_ONLY)


@dataclass(frozen=True)
class PocketSphinxOptions(VocabularyOptions):
    """Vocabulary, and the benchmark convention for counting errors."""

    scoring: ScoringName = ""


@dataclass(frozen=True)
class WhisperOptions(ParkedOptions):
    """A downloaded model folder.

    `name` whisper_large_v3 (checked by its shape) gives the benchmark's metric name. `language` is that of
    the texts ("" = found by the model). `normalizer` is the normalizer.json that scoring normalised_english
    needs, by default the one in the model's folder.
    """

    name: str = "whisper"
    language: str = "en"
    scoring: AnyScoringName = ""
    normalizer: Path | None = None
    batch_size: int = field(default=8, metadata=SPEED_ONLY)


@dataclass(frozen=True)
class EndpointOptions:
    """An OpenAI-compatible server; the token is read from the environment variable `token_variable`.

    `language` is that of the texts ("" = found by the server). `normalizer` is a Whisper model's
    normalizer.json, which scoring normalised_english needs. `patience_s`: how long a server that has answered
    before is asked again while it is away.
    """

    base_url: str = ""
    model: str = ""
    language: str = "en"
    scoring: AnyScoringName = ""
    normalizer: Path | None = None
    token_variable: str = field(default="", metadata=SPEED_ONLY)
    concurrency: int = field(default=8, metadata=SPEED_ONLY)
    patience_s: float = field(default=PATIENCE_S, metadata=SPEED_ONLY)


def wer_pocketsphinx(options: PocketSphinxOptions, shared: Shared) -> Reward:
    return _wer_pocketsphinx(options, shared, "pocketsphinx")


def wer_pocketsphinx_judge(options: PocketSphinxOptions, shared: Shared) -> Reward:
    return _wer_pocketsphinx(options, shared, "pocketsphinx_judge")


def intelligibility(options: VocabularyOptions, shared: Shared) -> Reward:
    return _intelligibility(options, shared, "pocketsphinx")


def intelligibility_judge(options: VocabularyOptions, shared: Shared) -> Reward:
    return _intelligibility(options, shared, "pocketsphinx_judge")


def wer_whisper(options: WhisperOptions, shared: Shared) -> Reward:
    from rewards.speech.wer import WordErrorRate
    from rewards.speech.whisper import WhisperTranscriber

    folder = needed(options.weights, "wer_whisper")
    scoring = _scoring(options.scoring, options.normalizer or folder / "normalizer.json", "wer_whisper")
    transcriber = WhisperTranscriber(
        folder,
        options.sha256,
        name=options.name,
        language=options.language,
        batch_size=options.batch_size,
        device=device_for(options.device, "wer_whisper"),
        park=options.parked,
    )
    return WordErrorRate(transcriber, scoring)


def wer_endpoint(options: EndpointOptions, shared: Shared) -> Reward:
    from rewards.speech.endpoint import EndpointTranscriber
    from rewards.speech.wer import WordErrorRate

    if not options.base_url or not options.model:
        raise ValueError(
            "wer_endpoint: set wer_endpoint.base_url=http://HOST:PORT and wer_endpoint.model=NAME"
        )
    transcriber = EndpointTranscriber(
        base_url=options.base_url,
        model=options.model,
        language=options.language,
        token_variable=options.token_variable,
        concurrency=options.concurrency,
        patience_s=options.patience_s,
    )
    return WordErrorRate(transcriber, _scoring(options.scoring, options.normalizer, "wer_endpoint"))


def _scoring(scoring: AnyScoringName, normalizer: Path | None, reward: str) -> WerConvention:
    from rewards.speech.scoring import SCORINGS, normalised_english

    if scoring != "normalised_english":
        return SCORINGS[scoring]
    if normalizer is None:
        raise ValueError(
            f"{reward}: scoring normalised_english needs {reward}.normalizer=PATH, the normalizer.json of a "
            "Whisper model's folder"
        )
    return normalised_english(normalizer)


def _wer_pocketsphinx(options: PocketSphinxOptions, shared: Shared, setup: str) -> Reward:
    from rewards.speech.scoring import SCORINGS
    from rewards.speech.wer import WordErrorRate

    return WordErrorRate(_recognizer(options, shared, setup, f"wer_{setup}"), SCORINGS[options.scoring])


def _intelligibility(options: VocabularyOptions, shared: Shared, setup: str) -> Reward:
    from rewards.speech.intelligibility import Intelligibility

    return Intelligibility(_recognizer(options, shared, setup, f"intelligibility_{setup}"))


def _recognizer(options: VocabularyOptions, shared: Shared, setup: str, name: str) -> Recognizer:
    """The recogniser of these words and settings, shared by all rewards that need it."""
    from rewards.speech.recognizer import Recognizer
    from rewards.speech.settings import SETTINGS

    if not options.vocabulary:
        raise ValueError(f"{name}.vocabulary: no words; set the words that can be heard, e.g. [yes, no]")
    key = (setup, options.vocabulary, options.num_processes)
    return shared.get(key, lambda: Recognizer(options.vocabulary, options.num_processes, SETTINGS[setup]))
