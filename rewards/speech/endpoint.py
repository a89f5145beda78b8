"""Speech to text by any server with OpenAI's transcription interface (vLLM serves Whisper so)."""

from __future__ import annotations

import io
import json
import os
import re
import time
import urllib.error
import urllib.request
import uuid
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException

import numpy as np

from rewards.sound import SAMPLE_RATE_HZ

RETRIED = (408, 429, 500, 502, 503, 504)
MAX_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class EndpointTranscriber:
    """POST {base_url}/v1/audio/transcriptions for each clip, `concurrency` at a time, answers in order.

    `token_variable` names the environment variable with the bearer token ("" = none is sent); the token
    itself is in no attribute, log or message, and redirects are refused so that it reaches no other host.
    Raises ValueError in one line for a wrong address or an unset variable, and ConnectionError in one line
    for a clip that fails after `num_tries` tries.
    """

    base_url: str
    model: str
    language: str = "en"
    token_variable: str = ""
    concurrency: int = 8
    timeout_s: float = 60.0
    num_tries: int = 4
    backoff_s: float = (
        0.5  # before the second try, doubled for every further one; a server's Retry-After counts if longer
    )

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/@]+(/[^?#@]*)?$", self.base_url):
            raise ValueError(
                f"base_url: {_without_login(self.base_url)!r} is not http(s)://host[:port][/path]; give the "
                "server's address"
            )
        if self.concurrency < 1 or self.num_tries < 1:
            raise ValueError(f"concurrency {self.concurrency}, num_tries {self.num_tries}: at least 1 each")

    @property
    def name(self) -> str:
        """The served model's name and `_endpoint`: what a server runs behind a name cannot be checked from
        here."""
        return re.sub(r"[^a-z0-9]+", "_", self.model.rsplit("/", 1)[-1].lower()).strip("_") + "_endpoint"

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/audio/transcriptions"

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Texts of float32 [N] 16 kHz sounds, in order; the first failed clip ends the batch."""
        token = self._token()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(lambda sound: self._ask(_wav(sound), token), waveforms))
        finally:
            pool.shutdown(cancel_futures=True)

    def _token(self) -> str:
        if self.token_variable and not os.environ.get(self.token_variable):
            raise ValueError(
                f"${self.token_variable}: not set; put the server's token there or leave token_variable empty"
            )
        return os.environ[self.token_variable].strip() if self.token_variable else ""

    def _ask(self, sound: bytes, token: str) -> str:
        failure = ""
        for attempt in range(self.num_tries):
            try:
                return self._post(sound, token)
            except urllib.error.HTTPError as error:
                failure = f"status {error.code} {_excerpt(error.read(), token)}".strip()
                if error.code not in RETRIED:
                    raise ConnectionError(
                        f"{self.url}: {failure}; check model {self.model!r}, token and server"
                    ) from None
                wait = _retry_after(error.headers.get("Retry-After", ""))
            except (OSError, HTTPException) as error:
                failure, wait = (
                    _excerpt(
                        str(getattr(error, "reason", "") or error or type(error).__name__).encode(), token
                    ),
                    0.0,
                )
            if attempt + 1 < self.num_tries:
                time.sleep(min(MAX_WAIT_S, max(wait, self.backoff_s * 2**attempt)))
        raise ConnectionError(f"{self.url}: {failure}, {self.num_tries} tries; check that the server is up")

    def _post(self, sound: bytes, token: str) -> str:
        fields = {"model": self.model, "response_format": "json", "temperature": "0"}
        content_type, body = _multipart(
            fields | ({"language": self.language} if self.language else {}), sound
        )
        headers = {"Content-Type": content_type, **({"Authorization": f"Bearer {token}"} if token else {})}
        request = urllib.request.Request(self.url, body, headers, method="POST")
        with _OPENER.open(request, timeout=self.timeout_s) as response:
            answer = response.read()
        try:
            text = json.loads(answer)["text"]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ConnectionError(f"answer without a text: {_excerpt(answer, token)}")
        return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _wav(waveform: np.ndarray) -> bytes:
    """16-bit WAV; what is louder than full scale is turned down, not clipped."""
    samples = waveform / max(1.0, float(np.abs(waveform).max(initial=0.0)))
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(SAMPLE_RATE_HZ)
            writer.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
        return file.getvalue()


def _multipart(fields: Mapping[str, str], sound: bytes) -> tuple[str, bytes]:
    """(content type, body) of form fields and one file."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
        'filename="clip.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    )
    return f"multipart/form-data; boundary={boundary}", b"".join(
        [*parts, head.encode(), sound, f"\r\n--{boundary}--\r\n".encode()]
    )


def _excerpt(answer: bytes, token: str) -> str:
    """The start of a server's answer on one line, without the token should it be echoed."""
    text = " ".join(answer.decode(errors="replace").split())
    return (text.replace(token, "***") if token else text)[:200]


def _retry_after(value: str) -> float:
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else 0.0


def _without_login(address: str) -> str:
    return re.sub(r"//[^/]*@", "//", address)
