"""The generation services that a page offers, and what each of them takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.generation_client import GenerationServer
from orchestration.generation_service.limits import JobLimits
from orchestration.generation_service.offer import Offer
from pretrain.config import one_line
from pretrain.flow.guidance import GuidanceScales
from pretrain.generation.config import GenerateConfig
from pretrain.prompt.names import name_problem
from pretrain.sampling import SamplerConfig
from rewards.http import check_address

USUAL_URL = "http://127.0.0.1:8124"
TOKEN_VARIABLE = "NAVA_API_TOKEN"
FRESH_S = 30.0  # that what a service said of its models is believed
AWAY_S = 5.0  # that a service without an answer is not asked again
PATIENCE_S, TRIES = 20.0, 2  # a person waits for the answer


@dataclass(frozen=True)
class ModelSide:
    """What makes the clips of one side: a service's model, and one of its adapters or none."""

    service: str  # its name on the page, "" for an only one
    model: str
    adapter: str = ""
    scale: float = 1.0

    @property
    def label(self) -> str:
        """Fit for a folder and for the name of a model in votes."""
        return label_of(self.service, self.model, self.adapters)

    @property
    def adapters(self) -> dict[str, float]:
        """As a request has them."""
        return {self.adapter: self.scale} if self.adapter else {}


def label_of(service: str, model: str, adapters: Mapping[str, float]) -> str:
    """SERVICE.MODEL+ADAPTER@SCALE, without what is not there and without a scale of 1."""
    added = [
        f"+{name}" + (f"@{scale!r}".removesuffix(".0") if scale != 1.0 else "")
        for name, scale in adapters.items()
    ]
    return f"{service}{'.' if service else ''}{model}{''.join(added)}"


@dataclass
class PageServices:
    """Services by their names on the page; what they say is asked again after a while."""

    servers: Mapping[str, GenerationServer]
    _said: dict[str, tuple[float, dict[str, Any] | OSError | ValueError]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def described(self, name: str) -> dict[str, Any]:
        """The entry of /v1/models. Raises ConnectionError or ValueError in one line, for a while the same."""
        with self._lock:
            when, known = self._said.get(name, (0.0, {}))
        lasts = AWAY_S if isinstance(known, Exception) else FRESH_S
        if not known or time.monotonic() - when >= lasts:
            known = self._asked(name)
            with self._lock:
                self._said[name] = (time.monotonic(), known)
        if isinstance(known, Exception):
            raise known
        return known

    def _asked(self, name: str) -> dict[str, Any] | OSError | ValueError:
        try:
            found = next(iter(self.servers[name].models()), None)
            if isinstance(found, Mapping):
                return dict(found)
        except (OSError, ValueError) as error:
            return error
        except (KeyError, TypeError):
            pass
        return ConnectionError(f"{self.servers[name].url}: serves no model; is it `nava serve generate`?")

    def side(self, service: str, adapter: str, scale: float) -> ModelSide:
        """Raises as `described`, and ValueError for what is not served (any more)."""
        if service not in self.servers:
            raise ValueError(f"{service!r}: no service of this page; load it again")
        described = self.described(service)
        if adapter and adapter not in described.get("adapters", ()):
            raise ValueError(f"adapter {adapter!r}: not served any more; load the page again")
        return ModelSide(service, str(described["id"]), adapter, scale if adapter else 1.0)

    def offer(self, name: str) -> Offer:
        """What the service takes, by its own rules. Raises as `described`."""
        return offer_of(self.described(name), self.servers[name].url)

    def sides(self) -> tuple[list[ModelSide], list[str]]:
        """All that can make clips, and a line for each service that does not answer."""
        sides: list[ModelSide] = []
        wrong: list[str] = []
        for name in self.servers:
            try:
                described = self.described(name)
                model, adapters = str(described["id"]), described.get("adapters", ())
                sides += [ModelSide(name, model, adapter) for adapter in ("", *map(str, adapters))]
            except (OSError, ValueError, KeyError) as error:
                wrong.append(f"{name}{': ' if name else ''}{one_line(error, 300)}")
        return sides, wrong


def offer_of(described: Mapping[str, Any], where: str) -> Offer:
    """The service's own checks with its defaults and limits. Raises ConnectionError for an entry without."""
    try:
        defaults, limits = described["defaults"], described["limits"]
        width, _, height = str(defaults["size"]).partition("x")
        config = GenerateConfig(
            sampler=SamplerConfig(
                solver=defaults["solver"],
                steps=int(defaults["steps"]),
                guidance=GuidanceScales(**defaults["guidance"]),
            ),
            fit=defaults["fit"],
            num_frames=int(defaults["num_frames"]),
            fps=float(described["fps"]),
            width=int(width),
            height=int(height),
        )
        return Offer(
            name=str(described["id"]),
            config=config,
            adapters=tuple(map(str, described["adapters"])),
            limits=JobLimits(
                prompt_chars=int(limits["prompt_chars"]),
                seconds_of_clip=float(limits["seconds"]),
                pixels_of_frame=int(limits["pixels"]),
                steps=int(limits["steps"]),
            ),
            facts={"trained_on": described.get("trained_on")},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConnectionError(
            f"{where}: /v1/models says what this page does not understand ({type(error).__name__}: "
            f"{one_line(error, 120)}); is it `nava serve generate` of this version?"
        ) from None


def services_of(places: Sequence[str], token_files: Sequence[str], default: Path) -> PageServices:
    """places: URL or NAME=URL, called A, B, ... where several have no name; token_files: FILE or NAME=FILE;
    default: the service's own token. Raises ValueError or FileNotFoundError in one line."""
    urls: dict[str, str] = {}
    for number, place in enumerate(places or (USUAL_URL,)):
        name, url = _named(place) if "=" in place.partition("://")[0] else ("", place)
        name = name or ("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 26] if len(places) > 1 else "")
        if name in urls:
            raise ValueError(f"{place}: a service is called {name!r} already; give each its own NAME=URL")
        check_address(url, name or "url")
        urls[name] = url
    given: dict[str, Path] = {}
    for text in token_files:
        name, path = _named(text) if "=" in text and text.partition("=")[0] in urls else ("", text)
        given[name] = Path(path)
    environment = os.environ.pop(TOKEN_VARIABLE, "").strip()  # what is started later need not have it
    return PageServices(
        {
            name: GenerationServer(
                url,
                _token(given.get(name, given.get("")), environment, default),
                timeout_s=PATIENCE_S,
                num_tries=TRIES,
            )
            for name, url in urls.items()
        }
    )


def _named(text: str) -> tuple[str, str]:
    name, _, rest = text.partition("=")
    if problem := name_problem(name):
        raise ValueError(f"{text}: {problem}")
    return name, rest


def _token(path: Path | None, environment: str, default: Path) -> str:
    if path is None and environment:
        token, where = environment, f"${TOKEN_VARIABLE}"
    else:
        place = path or default
        if not place.is_file():
            raise FileNotFoundError(
                f"{place}: no such file; `nava serve tokens add web --scopes generate` prints a token for "
                f"this page: put it in a file and give --token-file FILE, or in ${TOKEN_VARIABLE}"
            )
        with place.open(encoding="utf-8", errors="replace") as file:
            token, where = file.read(5000).strip(), str(place)
    if not token or not all("!" <= sign <= "~" for sign in token):
        raise ValueError(f"{where}: no token; put the service's there, visible ASCII characters in one line")
    return token
