"""A client of `nava serve generate`: make a clip, see how far it is, fetch it.

    server = GenerationServer("http://localhost:8124", token)
    job = server.create("A woman says: <S>seven<E>.", references=[Path("voice.wav")], seconds=1)
    job = server.wait(job["id"], lambda now: print(now["progress"]))
    server.fetch(job["id"], Path("seven.mp4"))

Jobs are the dictionaries that the service answers with (docs/generation_service.md).
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pretrain.files import replacing
from rewards.http import MAX_ANSWER_BYTES, Answer, NoAnswer, check_address, excerpt, exchange, form, tries

Job = dict[str, Any]
ENDED = ("completed", "failed", "cancelled")
PIECE = MAX_ANSWER_BYTES // 2  # of a clip, by one request
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Refused(ValueError):
    """The service will not do it: its reason in one line, the status, and OpenAI's code and param."""

    def __init__(self, reason: str, status: int, code: str = "", param: str | None = None) -> None:
        super().__init__(reason)
        self.status, self.code, self.param = status, code, param


@dataclass(frozen=True)
class GenerationServer:
    """Where a service is, and how patient its caller.

    Every method raises Refused (the request is wrong, or the job is none of this token's), or ConnectionError
    after `num_tries` attempts; both in one line, without the token.
    """

    url: str
    token: str = field(repr=False)
    timeout_s: float = 60.0  # of one request
    num_tries: int = 5
    backoff_s: float = 1.0  # before the second attempt, doubled with each further one

    def __post_init__(self) -> None:
        check_address(self.url, "url")

    def create(
        self,
        prompt: str,
        *,
        references: Sequence[Path | None] = (),
        first_frame: Path | None = None,
        key: str = "",
        **fields: Any,
    ) -> Job:
        """A job, accepted. references: the voice of each speech span, None for none; key: equal for attempts
        that are to make one job (one is made up, so a lost answer makes none twice); fields: seconds, size,
        seed, steps, guidance, negative_prompt, task, adapters and the others of the service.
        """
        given = {"prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
        files = {f"reference_{i}": path.read_bytes() for i, path in enumerate(references) if path is not None}
        files |= {"input_reference": first_frame.read_bytes()} if first_frame else {}
        request = json.dumps(given)
        kind, body = form({"request": request}, files) if files else ("application/json", request.encode())
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._ask("POST", "/v1/videos", body, kind, headers)

    def poll(self, id: str) -> Job:
        """The job as it is now."""
        return self._ask("GET", self._path(id))

    def wait(
        self, id: str, seen: Callable[[Job], None] = lambda job: None, timeout_s: float = float("inf")
    ) -> Job:
        """The job when it has ended, however; `seen` is called with each state on the way.

        Raises TimeoutError.
        """
        ends, pause = time.monotonic() + timeout_s, 0.25
        while True:
            job = self.poll(id)
            seen(job)
            if job["status"] in ENDED:
                return job
            if time.monotonic() >= ends:
                raise TimeoutError(f"{id}: {job['status']} after {timeout_s:g} s; poll it later")
            time.sleep(min(pause, max(0.0, ends - time.monotonic())))
            pause = min(3.0, 1.5 * pause)

    def fetch(self, id: str, path: Path, variant: str = "") -> Path:
        """Write the clip to `path`, whole or not at all. variant: video or audio, "" for what there is."""
        query = f"?variant={quote(variant)}" if variant else ""
        with replacing(path) as temporary, temporary.open("wb") as file:
            at, size, tag = 0, 1, ""
            while at < size:
                headers = {"Range": f"bytes={at}-{at + PIECE - 1}", **({"If-Range": tag} if tag else {})}
                answer = self._answer("GET", f"{self._path(id)}/content{query}", None, "", headers)
                found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
                whole = answer.status == 200 and at == 0
                size = len(answer.content) if whole else int(found[3]) if found else -1
                if size < 0 or (found and int(found[1]) != at) or not answer.content:
                    raise ConnectionError(f"{id}: the clip changed while it was fetched; fetch it again")
                tag = answer.headers.get("etag", "")
                file.write(answer.content)
                at += len(answer.content)
        return path

    def cancel(self, id: str) -> Job:
        """The job, cancelled. Refused (409) where it had completed or failed."""
        return self._ask("POST", f"{self._path(id)}/cancel", b"")

    def delete(self, id: str) -> Job:
        """Forget a job and its clip, at whatever stage it is."""
        return self._ask("DELETE", self._path(id))

    def list(self, *, after: str = "", limit: int = 20, order: str = "desc") -> Job:
        """A page of this token's jobs: data, last_id (for `after`), has_more, retention."""
        asked = {"limit": limit, "order": order, **({"after": after} if after else {})}
        return self._ask("GET", f"/v1/videos?{urlencode(asked)}")

    def models(self) -> Sequence[Mapping[str, Any]]:
        """What is served, with adapters, defaults and limits."""
        return self._ask("GET", "/v1/models")["data"]

    def _path(self, id: str) -> str:
        return f"/v1/videos/{quote(id, safe='')}"

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "",
        headers: Mapping[str, str] = {},
    ) -> Job:
        answer = self._answer(method, path, body, kind, headers)
        try:
            found = json.loads(answer.content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ConnectionError(
                f"{self.url}: answered {excerpt(answer.content, self.token)!r}; is it the service?"
            )
        return found

    def _answer(
        self, method: str, path: str, body: bytes | None, kind: str, headers: Mapping[str, str]
    ) -> Answer:
        def once() -> Answer:
            answer = exchange(
                f"{self.url.rstrip('/')}{path}",
                body,
                kind,
                self.token,
                timeout_s=self.timeout_s,
                method=method,
                more_headers=headers,
            )
            if answer.status in (200, 206):
                _check_whole(answer)
                return answer
            reason, code, param = _reason(answer, self.token)
            if answer.status in (408, 429) or answer.status >= 500:
                raise NoAnswer(f"status {answer.status}: {reason}", wait_s=answer.wait_s, reached=True)
            raise Refused(f"{reason} (status {answer.status})", answer.status, code, param)

        return tries(once, self.num_tries, self.backoff_s, self.url, "service")


def _check_whole(answer: Answer) -> None:
    length = answer.headers.get("content-length", "")
    if length.isdecimal() and int(length) != len(answer.content):
        raise NoAnswer(f"{len(answer.content)} of {length} bytes", reached=True)


def _reason(answer: Answer, token: str) -> tuple[str, str, str | None]:
    """(message, code, param) of an error in OpenAI's form, or of any other answer."""
    with suppress(ValueError, TypeError, KeyError):
        error = json.loads(answer.content)["error"]
        return excerpt(str(error["message"]), token), str(error["code"]), error.get("param")
    return excerpt(answer.content, token) or "no reason given", "", None
