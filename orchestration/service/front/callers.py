"""Who may ask: tokens read again when their file changes, scopes, rates and requests at once."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestration.service.access import DEFAULT, AccessToken, digest_of, matching, read_tokens
from orchestration.service.fair import Caller
from orchestration.service.gate_paths import SCOPE_OF
from orchestration.service.limits import Limits, Refusal

LOOK_EVERY_S = 0.5


class Callers:
    """Tokens of a service and what each one is using."""

    def __init__(self, default_digest: str, path: Path | None, limits: Limits) -> None:
        self.limits, self.path = limits, path
        self._own = AccessToken(name=DEFAULT, sha256=default_digest, scopes=("admin",))
        self._named: tuple[AccessToken, ...] = ()
        self._seen: tuple[int, ...] | None = None
        self._look_again = 0.0
        self._of_token, self._of_address = Counter[str](), Counter[str]()
        self._levels: dict[str, tuple[float, float]] = {}  # token -> (requests it may send, at that time)
        self._refresh()

    def identify(self, authorizations: list[bytes]) -> AccessToken:
        """Of the request's Authorization headers. Raises Refusal 401."""
        self._refresh()
        scheme, _, token = authorizations[0].partition(b" ") if len(authorizations) == 1 else (b"", b"", b"")
        presented = digest_of(token.strip()) if scheme.lower() == b"bearer" and token.strip() else b""
        found = matching((self._own, *self._named), presented)
        if found is None:
            # made anew: a raised instance keeps the frames of each time that it was raised
            raise Refusal(401, "token: missing or wrong; send Authorization: Bearer TOKEN")
        return found

    @contextmanager
    def admitted(self, token: AccessToken, route: str, address: str) -> Iterator[Caller]:
        """Counts a request while it is answered; `route` as of `route_of`.

        Raises Refusal 404 (no such path), 403 (scope), 429 (rate, number at once).
        """
        if route not in SCOPE_OF:
            raise Refusal(404, "path: not one of this service; /openapi.json lists them")
        scope = SCOPE_OF[route]
        if not token.may(scope):
            raise Refusal(
                403, f"token {token.name}: not for {scope}; its scopes are {', '.join(token.scopes)}"
            )
        if self._of_address[address] >= self.limits.client_requests:
            raise _busy(f"client: {self._of_address[address]} requests of this address are being answered")
        if token.in_flight and self._of_token[token.name] >= token.in_flight:
            raise _busy(f"token {token.name}: {token.in_flight} requests are being answered")
        self._spend(token)
        for counter, key in ((self._of_token, token.name), (self._of_address, address)):
            counter[key] += 1
        try:
            yield Caller(token.name, address)
        finally:
            for counter, key in ((self._of_token, token.name), (self._of_address, address)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    def _spend(self, token: AccessToken) -> None:
        """One request of `per_minute`, which a token may send at once after a quiet minute."""
        if not token.per_minute:
            return
        now = time.monotonic()
        level, then = self._levels.get(token.name, (float(token.per_minute), now))
        level = min(token.per_minute, level + (now - then) * token.per_minute / 60.0)
        self._levels[token.name] = (max(0.0, level - 1.0) if level >= 1.0 else level, now)
        if level < 1.0:
            wait_s = int((1.0 - level) * 60.0 / token.per_minute) + 1
            raise Refusal(
                429, f"token {token.name}: more than {token.per_minute} requests a minute", "service", wait_s
            )

    def _refresh(self) -> None:
        if self.path is None or time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK_EVERY_S
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
        except OSError:
            seen = ()
        if seen == self._seen:
            return
        try:
            self._named = read_tokens(self.path)
        except (ValueError, OSError) as error:  # tokens that were good stay good
            print(f"tokens: {error}; those of before stay", file=sys.stderr, flush=True)
        self._seen = seen
        names = {token.name for token in self._named}
        self._levels = {name: level for name, level in self._levels.items() if name in names}


def _busy(reason: str) -> Refusal:
    return Refusal(429, f"{reason}, which is all at once; try again", "service", retry_after_s=2)
