"""Chat answers of any server with OpenAI's interface (vLLM's, for one), held to a time and a size whatever
the server does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.http import NoAnswer, Sockets, check_address, excerpt, exchange, token_of

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
OF_THE_ROW = (400, 413, 422)  # such as a prompt too long for the model: others may pass


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """POST {base_url}/v1/chat/completions, directly (no proxy), redirects refused; safe to call from many
    threads.

    `token_variable` names the environment variable with the bearer token ("" = none is sent); the token
    itself is in no attribute, log or message. `timeout_s` is for a whole try, so that a server that sends a
    byte now and then ends too. Raises ValueError in one line for a wrong address, setting or variable.
    """

    base_url: str
    model: str
    token_variable: str = ""
    timeout_s: float = 120.0
    max_tokens: int = 4096  # a model that thinks first needs room for it
    temperature: float = 0.3
    top_p: float = 0.75
    _sockets: Sockets = field(default_factory=Sockets, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_address(self.base_url, "endpoint")
        if not self.model:
            raise ValueError("model: none given; name the model that the endpoint serves")
        if not (self.timeout_s > 0 and self.max_tokens > 0 and self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ValueError(
                f"{self}: timeout_s and max_tokens must be above 0, temperature at least 0, top_p in (0, 1]"
            )
        token_of(self.token_variable)

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides about an answer besides the messages."""
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }

    def ask(self, messages: Sequence[Mapping[str, str]], seed: int) -> str:
        """The text of one answer. Raises NoAnswer; ConnectionError in one line where no further request can
        succeed."""
        token = token_of(self.token_variable)
        if self._sockets.closed:
            raise NoAnswer("stopped")
        asked = {**self.settings, "messages": list(messages), "seed": seed, "stream": False}
        answer = exchange(
            self.url,
            json.dumps(asked).encode(),
            "application/json",
            token,
            timeout_s=self.timeout_s,
            sockets=self._sockets,
            proxies=False,
        )
        said = f"status {answer.status} {excerpt(answer.content, token)}".strip()
        if answer.status in BUSY:
            raise NoAnswer(said, wait_s=answer.wait_s)
        if answer.status in OF_THE_ROW:
            raise NoAnswer(said, again=False, reached=True)
        if 300 <= answer.status < 400:
            raise ConnectionError(f"{self.url}: {said}; redirects are not followed, give the final address")
        if answer.status != 200:
            raise ConnectionError(f"{self.url}: {said}; check model {self.model!r}, token and server")
        return _text_of(answer.content)

    def close(self) -> None:
        """Ends what is being asked, at once; asking again is refused."""
        self._sockets.cut()


def _text_of(answer: bytes) -> str:
    """The first choice's text. Raises NoAnswer for anything else than a finished one."""
    try:
        choice = json.loads(answer)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NoAnswer("answer without choices[0].message.content", reached=True) from None
    if not isinstance(text, str) or not text.strip():
        raise NoAnswer("empty answer", reached=True)
    if finish == "length":
        raise NoAnswer("answer cut off at max_tokens", reached=True)
    return text
