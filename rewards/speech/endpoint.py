"""Speech to text by a server with OpenAI's transcription API (such as vLLM serving Whisper)."""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from rewards.http import (
    NoAnswer,
    check_address,
    clean_text,
    excerpt,
    exchange,
    form,
    token_of,
)
from rewards.patience import PATIENCE_S, Patience, PatientBatch
from rewards.sound import SAMPLE_RATE_HZ

RETRIED = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class EndpointTranscriber:
    """POST {base_url}/v1/audio/transcriptions for each clip, `concurrency` at a time, answers in order.

    `token_variable` names the environment variable with the bearer token ("" = none is sent); the token
    itself is in no attribute, log or message, and redirects are refused so that it reaches no other host.
    `timeout_s` is for a whole try; an answer without an end is not asked for again.
    Raises ValueError in one line for a wrong address or an unset variable, and ConnectionError in one line
    for a clip that fails after `num_tries` tries, and where the server has answered before, `patience_s`
    seconds (`rewards.patience`).
    """

    base_url: str
    model: str
    language: str = "en"
    token_variable: str = ""
    concurrency: int = 8
    timeout_s: float = 60.0
    num_tries: int = 4
    # before the second attempt, doubled for each further one; a longer Retry-After wins
    backoff_s: float = 0.5
    patience_s: float = PATIENCE_S
    _patience: Patience = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_address(self.base_url, "base_url")
        if self.concurrency < 1 or self.num_tries < 1:
            raise ValueError(f"concurrency {self.concurrency}, num_tries {self.num_tries}: at least 1 each")
        patience = Patience(self.patience_s, self.num_tries, self.backoff_s, self.url, "server")
        object.__setattr__(self, "_patience", patience)

    @property
    def name(self) -> str:
        """The served model's name with suffix `_endpoint`, because the actual model cannot be verified."""
        return re.sub(r"[^a-z0-9]+", "_", self.model.rsplit("/", 1)[-1].lower()).strip("_") + "_endpoint"

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/audio/transcriptions"

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Texts of float32 [N] 16 kHz sounds, in order; the first failed clip ends the batch."""
        token, batch = token_of(self.token_variable), PatientBatch(self._patience)
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(lambda sound: batch.call(self._once(_wav(sound), token)), waveforms))
        finally:
            batch.ended = True
            pool.shutdown(cancel_futures=True)

    def interrupt(self) -> None:
        """Wait no longer for a server that is away, now and later; safe in a signal handler."""
        self._patience.interrupted = True

    def _once(self, sound: bytes, token: str) -> Callable[[], str]:
        """What asks once."""
        fields = {"model": self.model, "response_format": "json", "temperature": "0"}
        fields |= {"language": self.language} if self.language else {}
        content_type, body = form(fields, {"file": ("clip.wav", sound, "audio/wav")})

        def once() -> str:
            answer = exchange(self.url, body, content_type, token, timeout_s=self.timeout_s)
            reason = f"status {answer.status} {excerpt(answer.content, token)}".strip()
            if answer.status in RETRIED:
                raise NoAnswer(reason, wait_s=answer.wait_s)
            if answer.status != 200:
                raise ConnectionError(f"{self.url}: {reason}; check model {self.model!r}, token and server")
            return _text_of(answer.content, token)

        return once


def _text_of(answer: bytes, token: str) -> str:
    try:
        text = json.loads(answer)["text"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise NoAnswer(f"answer without a text: {excerpt(answer, token)}")
    return clean_text(text)


def _wav(waveform: np.ndarray) -> bytes:
    """16-bit WAV; sounds above full scale are scaled down instead of clipped."""
    samples = waveform / max(1.0, float(np.abs(waveform).max(initial=0.0)))
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(SAMPLE_RATE_HZ)
            writer.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
        return file.getvalue()
