"""Rewards computed by another machine: a client of `nava serve rewards`.

Clips are uploaded losslessly, so scores equal those of a local reward. `rewards.remote:NAME` is the served
reward NAME as a plug-in; a rubric may use several.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rewards.base import unscored
from rewards.http import NoAnswer, check_address, clean_text, excerpt, exchange
from rewards.options import nearest
from rewards.patience import PATIENCE_S, Patience, PatientBatch
from rewards.remote_upload import upload_of
from rewards.types import Clip, Score

RETRIED = (408, 429, 502, 503, 504)
TOKEN_VARIABLE = "NAVA_API_TOKEN"
# how services that do not say `again` end an error that may pass
TRY_AGAIN = "; try again"


class RemoteReward:
    """A reward of the service at `url`. `token_file` holds the bearer token; else it is $NAVA_API_TOKEN.

    A clip that the service cannot score is NaN with its reason. Once the service has answered, one that is
    away, busy or lost a reward's process is asked again for `patience_s` seconds; before, `num_tries` times
    (`rewards.patience`). Raises ConnectionError in one line where the service cannot be reached, refuses the
    request or reports that the reward failed; ValueError for a wrong address or token, a reward it does not
    have, a judge unless `measure_only`, and one that is better when lower unless `turned` (values are
    negated) or `measure_only`.
    """

    def __init__(
        self,
        reward: str,
        url: str = "",
        token_file: str | Path | None = None,
        name: str = "",
        timeout_s: float = 330.0,
        num_tries: int = 4,
        backoff_s: float = 0.5,
        concurrency: int = 8,
        turned: bool = False,
        measure_only: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        check_address(url, f"remote {reward}: url")
        if num_tries < 1 or concurrency < 1 or not timeout_s > 0:
            raise ValueError(
                f"remote {reward}: num_tries {num_tries}, concurrency {concurrency}, timeout_s {timeout_s}: "
                "more than 0 each"
            )
        self.reward, self.url, self.name = reward, url.rstrip("/"), name or f"remote_{reward}"
        self.timeout_s, self.concurrency = float(timeout_s), concurrency
        where = f"remote {reward}: {self.url}"
        self.patience = Patience(patience_s, num_tries, backoff_s, where, "service")
        self._sign = -1.0 if turned else 1.0
        self._token_file = Path(token_file) if token_file else None
        self._check(turned, measure_only)

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """Send one request per clip, `concurrency` at a time; the service batches them.

        The first failure ends the batch.
        """
        token, batch = self._token(), PatientBatch(self.patience)
        # not a context manager: its exit would wait for all queued requests after a failure
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(lambda clip: self._score(clip, token, batch), clips))
        finally:
            batch.ended = True
            pool.shutdown(cancel_futures=True)

    def interrupt(self) -> None:
        """Wait no longer for a service that is away, now and later; safe in a signal handler."""
        self.patience.interrupted = True

    def _score(self, clip: Clip, token: str, batch: PatientBatch) -> Score:
        start = time.perf_counter()
        try:
            content_type, body = upload_of(clip, self.reward)
        except ValueError as error:
            return unscored(str(error))

        def once() -> Score:
            status, answer = self._ask("/v1/score", token, content_type, body)
            if status != 200:
                return unscored(excerpt(str(answer.get("reason")), token))
            try:
                return self._scored(answer["scores"][self.reward], time.perf_counter() - start, token)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
                raise ConnectionError(
                    f"{self.url}: an answer without a score of {self.reward}; is it `nava serve rewards`?"
                ) from None

        return batch.call(once)

    def _scored(self, answer: Mapping[str, Any], seconds: float, token: str) -> Score:
        if answer["error"]:
            said = excerpt(str(answer["error"]), token)
            if answer.get("again", str(answer["error"]).endswith(TRY_AGAIN)):
                raise NoAnswer(said, reached=True)
            raise ConnectionError(f"{self.url}: reward {self.reward} failed there: {said}")
        parts = {
            excerpt(name, token): math.nan if part is None else float(part)
            for name, part in answer["parts"].items()
        }
        value = math.nan if answer["value"] is None else float(answer["value"])
        reason = excerpt(str(answer["reason"]), token)
        if not math.isfinite(value):
            value, reason = math.nan, reason or "no value"
        return Score(self._sign * value, reason, parts, clean_text(answer["text"]), seconds)

    def _check(self, turned: bool, measure_only: bool) -> None:
        """Check that the service is reachable, has the reward and that its direction fits its use."""
        token = self._token()
        _, served = self.patience.call(lambda: self._ask("/v1/rewards", token))
        try:
            found = {excerpt(entry["name"], token): entry for entry in served}
        except (TypeError, KeyError, AttributeError):
            raise ConnectionError(
                f"{self.url}: an answer without rewards; is it `nava serve rewards`?"
            ) from None
        if self.reward not in found:
            raise ValueError(
                f"remote {self.reward}: {self.url} does not serve it; {nearest(self.reward, found)}"
            )
        if found[self.reward].get("judge") and not measure_only:
            raise ValueError(
                f"remote {self.reward}: a judge must stay out of what is rewarded; set measure_only=true to "
                "measure by it"
            )
        if found[self.reward].get("lower_is_better") and not (turned or measure_only):
            raise ValueError(
                f"remote {self.reward}: lower is better; set turned=true to reward its negative, or "
                "measure_only=true"
            )

    def _token(self) -> str:
        if self._token_file is not None and not self._token_file.is_file():
            raise ValueError(
                f"remote {self.reward}: token_file {self._token_file}: no such file; put the service's "
                "token there"
            )
        token = (
            _start_of(self._token_file) if self._token_file else os.environ.get(TOKEN_VARIABLE, "")
        ).strip()
        if not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
            raise ValueError(
                f"remote {self.reward}: no token; set token_file or ${TOKEN_VARIABLE} to the service's"
            )
        return token

    def _ask(
        self, path: str, token: str, content_type: str = "", body: bytes | None = None
    ) -> tuple[int, Any]:
        """(200, response), or (status, reason) if the clip cannot be scored. Raises NoAnswer."""
        answer = exchange(self.url + path, body, content_type, token, timeout_s=self.timeout_s)
        found = _json(answer.content)
        if answer.status == 200:
            return 200, found
        refusal = found if isinstance(found, dict) else {}
        if refusal.get("fault") == "clip":
            return answer.status, refusal
        failure = f"status {answer.status} {excerpt(str(refusal.get('reason', '')), token)}".strip()
        if answer.status not in RETRIED:
            raise ConnectionError(f"{self.url}: {failure}")
        raise NoAnswer(failure, wait_s=answer.wait_s)


def _start_of(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(5000)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def __getattr__(name: str) -> Callable[..., RemoteReward]:
    """`rewards.remote:NAME`: the catalog builds a plug-in by its attribute of this module."""
    if not name[0].islower():
        raise AttributeError(name)
    return partial(RemoteReward, name)
