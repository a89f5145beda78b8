"""Served and given models that steps may ask; set once in every worker process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.rewriter.endpoint import ChatEndpoint
    from rewards.speech.transcriber import Transcriber


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything is optional: without, PocketSphinx hears, a template describes and nothing checks lips."""

    syncnet: Path | None = None  # a folder of `nava syncnet`, or syncnet_v2.model
    yunet: Path | None = None  # face_detection_yunet's ONNX file
    transcribe: str = ""  # address of a server with OpenAI's transcription interface
    transcribe_model: str = ""
    whisper: Path | None = None  # a folder of Whisper in Transformers' format
    language: str = "en"
    caption: str = ""  # address of a server with OpenAI's chat interface and a vision-language model
    caption_model: str = ""
    token_variable: str = ""

    def check(self) -> None:
        """Raises FileNotFoundError or ValueError in one line, before any file is opened."""
        for place in (self.syncnet, self.yunet, self.whisper):
            if place is not None and not place.exists():
                raise FileNotFoundError(f"{place}: no such file or folder; check the path")
        for name, address, model in (
            ("transcribe", self.transcribe, self.transcribe_model),
            ("caption", self.caption, self.caption_model),
        ):
            if bool(address) != bool(model):
                raise ValueError(f"--{name}: give --{name} URL and --{name}-model NAME together")
        if self.transcribe and self.whisper:
            raise ValueError("--transcribe and --whisper: both say who hears; give one of them")
        if self.yunet and self.yunet.suffix != ".onnx":
            raise ValueError(f"--yunet {self.yunet}: expected YuNet's ONNX file")


_services = Services()


def use(services: Services) -> None:
    """Sets the services of this process."""
    global _services
    _services = services
    transcriber.cache_clear()
    captioner.cache_clear()


def services() -> Services:
    return _services


@cache
def transcriber() -> Transcriber | None:
    """Who hears words in place of PocketSphinx, None for nobody."""
    chosen = services()
    if chosen.whisper:
        from rewards.speech.whisper import WhisperTranscriber

        return WhisperTranscriber(chosen.whisper, language=chosen.language)
    if chosen.transcribe:
        from rewards.speech.endpoint import EndpointTranscriber

        return EndpointTranscriber(
            base_url=chosen.transcribe,
            model=chosen.transcribe_model,
            language=chosen.language,
            token_variable=chosen.token_variable,
        )
    return None


@cache
def captioner() -> ChatEndpoint | None:
    """The vision-language model that describes clips, None for nobody."""
    chosen = services()
    if not chosen.caption:
        return None
    from finetune.rewriter.endpoint import ChatEndpoint

    return ChatEndpoint(
        base_url=chosen.caption,
        model=chosen.caption_model,
        token_variable=chosen.token_variable,
        temperature=0.0,
        max_tokens=1024,
    )
