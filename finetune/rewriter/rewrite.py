"""Rewrites short prompts by a language model, with a template or the prompt itself as fallback.

Every completion passes `fault`: a text whose speech spans are not the prompt's, byte for byte and in order,
is never returned.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from finetune.rewriter.cache import Kept, RewriteCache, request_key
from finetune.rewriter.endpoint import NoAnswer
from finetune.rewriter.form import (
    FORMS,
    ChatMessage,
    Form,
    form_of,
    messages,
    num_words,
    rewrite_of,
    structure,
)
from finetune.rewriter.spans import check_spans, protect
from finetune.rewriter.template import by_template
from pretrain.progress import track

MAX_CHARACTERS = 20_000  # of a completion, besides its prompt's
MAX_WAIT_S = 60.0
MAX_CONCURRENCY = 512
JOIN_S = 5.0


class ChatModel(Protocol):
    """A chat model (`finetune.rewriter.endpoint.ChatEndpoint`)."""

    @property
    def url(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def ask(self, messages: Sequence[ChatMessage], seed: int) -> str: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RewriteSettings:
    """Settings of requests. `language` "auto": the prompt's own; `patience`: consecutive prompts without a
    response that end the run; `min_structure` (`form.structure`): minimum of a rewrite. Raises ValueError."""

    language: Literal["auto", "en", "zh"] = "auto"
    fallback: Literal["template", "original"] = "template"
    concurrency: int = 16
    num_tries: int = 4
    # before the second try, doubled for every further one; a server's Retry-After counts if longer
    backoff_s: float = 0.5
    min_structure: float = 0.5
    seed: int = 0  # another seed gives other completions where the server uses it
    patience: int = 20

    def __post_init__(self) -> None:
        whole = min(self.num_tries, self.patience) >= 1 and 1 <= self.concurrency <= MAX_CONCURRENCY
        if not whole or min(self.backoff_s, self.seed) < 0 or not 0 <= self.min_structure <= 1:
            limits = (
                f"concurrency 1..{MAX_CONCURRENCY}, num_tries and patience from 1, backoff_s and seed "
                "from 0, min_structure in 0..1"
            )
            raise ValueError(f"{self}: {limits}")

    def form(self, prompt: str) -> Form:
        return form_of(prompt) if self.language == "auto" else FORMS[self.language]


@dataclass(frozen=True)
class Rewrite:
    """A rewritten prompt and its source; `reason`: why the last completion was rejected ("" = was not)."""

    text: str
    by: Literal["model", "template", "original"]
    reason: str = ""
    tries: int = 0
    cached: bool = False


def fault(prompt: str, text: str, form: Form, min_structure: float) -> str:
    """ "" where `text` may stand for `prompt`; else why not, in one line."""
    if len(text) > MAX_CHARACTERS + 2 * len(prompt):
        return f"{len(text)} characters, far too long"
    if wrong := protect(prompt).check(prompt, text):
        return wrong
    if "<think" in text.lower() and "<think" not in prompt.lower():
        return "thoughts without an end"
    count, limit = num_words(text), 2 * max(form.high, num_words(prompt))
    if not 0 < count <= limit:
        return f"{count} words, wanted 1 to {limit}"
    if count > 2 * num_words(text, repeated=False):
        return "says the same again and again"
    found = structure(text, form)
    return "" if found >= min_structure else f"{found:.0%} of the form's parts, wanted {min_structure:.0%}"


def without_model(prompt: str, settings: RewriteSettings, reason: str = "", tries: int = 0) -> Rewrite:
    """The prompt by the template, or unchanged where `settings.fallback` says so or spans would be lost."""
    if settings.fallback == "template":
        text = by_template(prompt, settings.form(prompt))
        if not check_spans(prompt, text):
            return Rewrite(text, "template", reason, tries)
    return Rewrite(prompt, "original", reason, tries)


def rewrite_all(
    prompts: Sequence[str], endpoint: ChatModel, cache: RewriteCache, settings: RewriteSettings
) -> list[Rewrite]:
    """One rewrite per prompt, in order; requests are deduplicated and cached, fallbacks are not cached.

    Raises ValueError for a prompt whose marks are wrong, ConnectionError in one line where the server refuses
    all or `patience` is over, OSError for the cache; what has passed by then is in the cache.
    """
    requests = {prompt: messages(prompt, settings.form(prompt)) for prompt in dict.fromkeys(prompts)}
    done: dict[str, Rewrite] = {}
    for prompt, request in requests.items():
        kept = cache.get(request_key(request, endpoint.settings))
        if kept and not fault(prompt, kept.text, settings.form(prompt), settings.min_structure):
            done[prompt] = Rewrite(kept.text, "model", tries=kept.tries, cached=True)
    todo = [prompt for prompt in requests if prompt not in done]
    run = _Run(endpoint, cache, settings, requests, iter(todo))
    threads = [
        threading.Thread(target=run.work, daemon=True) for _ in range(min(settings.concurrency, len(todo)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in track(range(len(todo)), len(todo), "prompts rewritten"):
            prompt, outcome = run.outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            done[prompt] = outcome
            run.check_patience(len(done), len(requests))
    finally:
        run.stop.set()
        if len(done) < len(requests):
            endpoint.close()
        for thread in threads:
            thread.join(JOIN_S)
    return [done[prompt] for prompt in prompts]


@dataclass
class _Run:
    endpoint: ChatModel
    cache: RewriteCache
    settings: RewriteSettings
    requests: dict[str, list[ChatMessage]]
    todo: Iterator[str]
    outcomes: queue.SimpleQueue[tuple[str, Rewrite | BaseException]] = field(
        default_factory=queue.SimpleQueue
    )
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    unreached: int = 0  # consecutive prompts without a response
    last: str = ""

    def work(self) -> None:
        while not self.stop.is_set():
            with self.lock:
                prompt = next(self.todo, None)
            if prompt is None:
                return
            try:
                self.outcomes.put((prompt, self.rewrite(prompt)))
            except BaseException as error:  # raised in the main thread
                self.outcomes.put((prompt, error))

    def rewrite(self, prompt: str) -> Rewrite:
        reason, reached, tries = "", False, 0
        for attempt in range(self.settings.num_tries):
            tries, wait_s = attempt + 1, 0.0
            try:
                seed = self.settings.seed * self.settings.num_tries + attempt
                text = rewrite_of(prompt, self.endpoint.ask(self.requests[prompt], seed))
                reached = True
                reason = fault(prompt, text, self.settings.form(prompt), self.settings.min_structure)
                if not reason:
                    self.cache.put(
                        request_key(self.requests[prompt], self.endpoint.settings), Kept(text, tries)
                    )
                    self.note(True, "")
                    return Rewrite(text, "model", tries=tries)
            except NoAnswer as error:
                reason, reached = error.reason, reached or error.reached
                if not error.again:
                    break
                wait_s = (
                    0.0
                    if error.reached
                    else min(MAX_WAIT_S, max(error.wait_s, self.settings.backoff_s * 2**attempt))
                )
            if attempt + 1 < self.settings.num_tries and self.stop.wait(wait_s):
                break
        self.note(reached, reason)
        return without_model(prompt, self.settings, reason, tries)

    def note(self, reached: bool, reason: str) -> None:
        with self.lock:
            self.unreached = 0 if reached else self.unreached + 1
            self.last = reason or self.last

    def check_patience(self, num_done: int, num_all: int) -> None:
        if self.unreached >= self.settings.patience:
            raise ConnectionError(
                f"{self.endpoint.url}: {self.unreached} prompts in a row without an answer ({self.last}); "
                f"{num_done} of {num_all} were "
                "gone through and rewrites that passed are kept: see to the server and run the same command "
                "again"
            )
